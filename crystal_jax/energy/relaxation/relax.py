"""Relaxes atoms and cell to the nearest energy minimum, in batches of crystals.

The optimizer is FIRE (Bitzek et al., Phys. Rev. Lett. 97, 170201, 2006) with ASE's constants, applied to positions and
deformation gradient as in ASE's `UnitCellFilter`. Each crystal has its own velocities, step size, step count and time;
only the model call is shared by the batch. When a crystal finishes, the next one takes its slot at once.
"""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np

from crystal_jax.energy.model import Cell, EnergyModel, Prediction
from crystal_jax.energy.settings import RelaxSettings

# FIRE's constants; names follow the paper where it has names.
_DT, _DT_MAX, _MAX_MOVE = 0.1, 1.0, 0.2  # time steps, in ASE's unit; largest move per step, Å (norm)
_N_MIN, _F_INC, _F_DEC, _ALPHA, _F_ALPHA = 5, 1.1, 0.5, 0.1, 0.99

# Limits that a relaxation towards a minimum never crosses.
_VOLUME_RATIO = (0.2, 5.0)  # current cell volume over initial cell volume
_LEAST_VOLUME = 2.0  # Å^3/atom; the densest real crystals have 3 to 5
_LOWEST_ENERGY = -25.0  # eV/atom; the lowest energy of an element is about -15

Status = Literal["converged", "steps", "timeout", "exploded", "crashed"]


@dataclasses.dataclass(frozen=True)
class Relaxed:
    """Result of a relaxation.

    Attributes:
        key: key of the crystal.
        status: "converged"; "steps" if `max_steps` was reached, in which case the energy counts, as in the paper; or
            the type of failure.
        reason: reason of a failure.
        energy: the model's energy of the whole cell, in eV; None for a failure.
        first_energy: the same before the first step.
        steps: number of steps taken.
        seconds: time of this crystal, see `RelaxSettings.timeout`.
        cell: the final cell.
    """

    key: str
    status: Status
    reason: str
    energy: float | None
    first_energy: float | None
    steps: int
    seconds: float
    cell: Cell

    @property
    def succeeded(self) -> bool:
        """Whether the result has an energy."""
        return self.energy is not None


class _Path:
    """Relaxation in progress of one crystal."""

    def __init__(self, key: str, cell: Cell, settings: RelaxSettings):
        self.key, self.cell, self.settings = key, cell, settings
        self.steps, self.seconds = 0, 0.0
        self.energy: float | None = None
        self.first_energy: float | None = None
        self._first = cell
        count = len(cell.numbers)
        # Rows: positions in the frame of the first cell, then the deformation gradient times the number of atoms.
        self._x = np.vstack([cell.positions, count * np.eye(3)])
        self._v = np.zeros_like(self._x)
        self._dt, self._alpha, self._uphill = _DT, _ALPHA, 0
        self._count = count

    def ended(self, status: Status, reason: str = "") -> Relaxed:
        energy = self.energy if status in ("converged", "steps") else None
        return Relaxed(
            self.key, status, reason, energy, self.first_energy, self.steps, round(self.seconds, 3), self.cell
        )

    def impossible(self) -> Relaxed | None:
        """Returns the result "exploded" if the cell has reached an impossible geometry, otherwise None."""
        volume = self.cell.volume
        ratio = volume / self._first.volume if self._first.volume else np.inf
        if not np.isfinite(self.cell.positions).all() or not np.isfinite(volume):
            return self.ended("exploded", "positions are not finite")
        if volume < _LEAST_VOLUME * self._count:
            return self.ended("exploded", f"less than {_LEAST_VOLUME:g} Å^3 an atom")
        if not _VOLUME_RATIO[0] <= ratio <= _VOLUME_RATIO[1]:
            return self.ended("exploded", f"the volume changed by more than a factor of {_VOLUME_RATIO[1]:g}")
        return None

    def advance(self, prediction: Prediction, seconds: float) -> Relaxed | None:
        """Processes the model's prediction for the current cell. Returns the result if the relaxation ends, otherwise
        takes a step.
        """
        self.seconds += seconds
        finite = np.isfinite(prediction.energy) and np.isfinite(prediction.forces).all()
        if not finite or not np.isfinite(prediction.stress).all():
            return self.ended("exploded", "the model's energy or forces are not finite")
        if prediction.energy < _LOWEST_ENERGY * self._count:
            return self.ended("exploded", f"the model's energy is below {_LOWEST_ENERGY:g} eV an atom")
        self.energy = prediction.energy
        if self.first_energy is None:
            self.first_energy = prediction.energy
        deformation = self._x[self._count :] / self._count
        forces = self._generalised(prediction, deformation)
        if np.linalg.norm(forces, axis=1).max() < self.settings.fmax:
            return self.ended("converged")
        if self.steps >= self.settings.max_steps:
            return self.ended("steps")
        if self.seconds > self.settings.timeout:
            return self.ended("timeout", f"not done within {self.settings.timeout:g} s")
        self._fire(forces)
        self.steps += 1
        deformation = self._x[self._count :] / self._count
        self.cell = Cell(self.cell.numbers, self._x[: self._count] @ deformation.T, self._first.lattice @ deformation.T)
        return self.impossible()

    def _generalised(self, prediction: Prediction, deformation: np.ndarray) -> np.ndarray:
        """Returns the generalised forces on the rows of `_x`."""
        virial = -self.cell.volume * prediction.stress
        on_cell = np.linalg.solve(deformation, virial.T).T / self._count
        return np.vstack([prediction.forces @ deformation, on_cell])

    def _fire(self, forces: np.ndarray) -> None:
        power = np.vdot(forces, self._v)
        if power > 0:
            along = forces / np.linalg.norm(forces) * np.linalg.norm(self._v)
            self._v = (1 - self._alpha) * self._v + self._alpha * along
            if self._uphill > _N_MIN:
                self._dt = min(self._dt * _F_INC, _DT_MAX)
                self._alpha *= _F_ALPHA
            self._uphill += 1
        elif self.steps:
            self._v = np.zeros_like(self._v)
            self._dt, self._alpha, self._uphill = self._dt * _F_DEC, _ALPHA, 0
        self._v = self._v + self._dt * forces
        move = self._dt * self._v
        length = float(np.linalg.norm(move))
        self._x = self._x + move * min(1.0, _MAX_MOVE / length)


def relax(model: EnergyModel, cells: Iterable[tuple[str, Cell]], settings: RelaxSettings) -> Iterator[Relaxed]:
    """Relaxes crystals, each given with a key; yields each result when it is ready, in no fixed order.

    An error or an impossible result of the model ends only the crystal that caused it.
    """
    waiting = collections.deque(cells)
    active: list[_Path] = []
    while waiting or active:
        atoms = sum(len(path.cell.numbers) for path in active)
        while waiting and (not active or atoms + len(waiting[0][1].numbers) <= settings.batch_atoms):
            path = _Path(*waiting.popleft(), settings)
            if (end := _unknown(model, path) or path.impossible()) is not None:
                yield end
                continue
            active.append(path)
            atoms += len(path.cell.numbers)
        going = []
        for path, outcome, seconds in _evaluate(model, active):
            end = outcome if isinstance(outcome, Relaxed) else path.advance(outcome, seconds)
            if end is None:
                going.append(path)
            else:
                yield end
        active = going


def _unknown(model: EnergyModel, path: _Path) -> Relaxed | None:
    if model.elements.issuperset(path.cell.numbers.tolist()):
        return None
    return path.ended("crashed", "an element that the model does not know")


def _evaluate(model: EnergyModel, paths: list[_Path]) -> Iterator[tuple[_Path, Prediction | Relaxed, float]]:
    """Yields each crystal with the model's prediction, or a failed result, and its share of the time in s."""
    if not paths:
        return
    begin = time.monotonic()
    try:
        predictions: list[Prediction | Relaxed] = list(model.predict([path.cell for path in paths]))
    except Exception as error:  # networks raise many types of errors; one crystal may fail the batch
        if len(paths) > 1:
            for path in paths:
                yield from _evaluate(model, [path])
            return
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        predictions = [paths[0].ended("crashed", reason)]
    share = (time.monotonic() - begin) / sum(len(path.cell.numbers) for path in paths)
    for path, prediction in zip(paths, predictions, strict=True):
        yield path, prediction, share * len(path.cell.numbers)
