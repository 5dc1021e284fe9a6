"""Relaxes atoms and cell to the nearest energy minimum, in batches of crystals.

One loop serves all models: when a crystal finishes, the next one takes its place in the batch at once (`relax`). The
optimizer is in `fire`, what takes its steps in `steppers`.

torch-sim has such a loop for models in PyTorch, but no adapters of CHGNet and matgl's models, and counts its steps for
the whole batch (0.3.0); so these models use this loop too.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from pymatgen.core import Element

from crystal_jax.energy.model import Cell, EnergyModel
from crystal_jax.energy.potentials.graph import find_neighbours
from crystal_jax.energy.potentials.jax_model import JaxModel
from crystal_jax.energy.relaxation.batch import Path
from crystal_jax.energy.relaxation.fire import LEAST_VOLUME, LOWEST_ENERGY, VOLUME_RATIO, Code
from crystal_jax.energy.relaxation.result import Relaxed, Status
from crystal_jax.energy.relaxation.steppers import DeviceStepper, HostStepper, Stepper
from crystal_jax.energy.settings import RelaxSettings

# Å. Atoms of a sample closer than this coincide: forces between them are noise.
MIN_DISTANCE = 0.1
_LOOK_AHEAD = 8  # crystals that may be passed over by smaller ones that still fit into the batch
_HOST_BATCH_ATOMS = 160  # of models that are called on the host, by default

_ENDINGS: dict[Code, tuple[Status, str]] = {
    Code.CONVERGED: ("converged", ""),
    Code.STEPS: ("steps", ""),
    Code.NOT_FINITE: ("exploded", "the model's energy or forces are not finite"),
    Code.TOO_LOW: ("exploded", f"the model's energy is below {LOWEST_ENERGY:g} eV an atom"),
    Code.NOT_FINITE_POSITIONS: ("exploded", "positions are not finite"),
    Code.TOO_DENSE: ("exploded", f"less than {LEAST_VOLUME:g} Å^3 an atom"),
    Code.VOLUME: ("exploded", f"the volume changed by more than a factor of {VOLUME_RATIO:g}"),
}


def relax(model: EnergyModel, cells: Iterable[tuple[str, Cell]], settings: RelaxSettings) -> Iterator[Relaxed]:
    """Relaxes crystals, each given with a key; yields each result when it is ready, in no fixed order.

    An error or an impossible result of the model ends only the crystal that caused it.
    """
    stepper = _stepper(model, settings)
    source = iter(cells)
    passed_over: collections.deque[tuple[str, Cell]] = collections.deque()
    active: list[Path] = []
    while True:
        refused, joining = _next_crystals(stepper, model, passed_over, source, active)
        yield from refused
        active += joining
        if not active:
            return
        reasons = _step(stepper, active, settings)
        going = []
        for path in active:
            end = _ending(path, reasons, settings)
            if end is None:
                going.append(path)
            else:
                yield _result(path, *end)
        active = going


def _next_crystals(
    stepper: Stepper,
    model: EnergyModel,
    passed_over: collections.deque[tuple[str, Cell]],
    source: Iterator[tuple[str, Cell]],
    active: Sequence[Path],
) -> tuple[list[Relaxed], list[Path]]:
    """Takes crystals for which the batch has room, first of those that were passed over, then from the source.

    Returns:
        The results of crystals that cannot be relaxed, and the relaxations that join the batch.
    """
    references = model.potential.references if isinstance(model, JaxModel) else np.zeros(len(Element) + 2)
    refused: list[Relaxed] = []
    joining: list[Path] = []
    large: list[tuple[str, Cell]] = []
    while len(large) < _LOOK_AHEAD and (taken := passed_over.popleft() if passed_over else next(source, None)):
        key, cell = taken
        if reason := _refusal(model, cell):
            refused.append(Relaxed(key, "refused", reason, None, None, 0, 0.0, cell))
            continue
        path = Path.of(key, cell, references)
        if stepper.fits([*active, *joining], path):
            joining.append(path)
        else:
            large.append(taken)
    passed_over.extendleft(reversed(large))
    return refused, joining


def _step(stepper: Stepper, paths: list[Path], settings: RelaxSettings) -> dict[str, str]:
    """Takes steps, one crystal at a time if the model fails on all. Returns the reasons of those that it fails on."""
    try:
        stepper.step(paths, settings)
    except Exception as error:  # networks raise many types of errors
        if len(paths) == 1:
            return {paths[0].key: (str(error).strip().splitlines() or [type(error).__name__])[0]}
        return {key: reason for path in paths for key, reason in _step(stepper, [path], settings).items()}
    return {}


def _stepper(model: EnergyModel, settings: RelaxSettings) -> Stepper:
    if isinstance(model, JaxModel):
        return DeviceStepper(model, settings.batch_atoms)
    return HostStepper(model, settings.batch_atoms or _HOST_BATCH_ATOMS)


def _refusal(model: EnergyModel, cell: Cell) -> str:
    """Returns why a crystal cannot be relaxed, or ""."""
    if unknown := sorted(set(cell.numbers.tolist()) - model.elements):
        return f"the model does not know {', '.join(Element.from_Z(number).symbol for number in unknown)}"
    if not (np.isfinite(cell.positions).all() and np.isfinite(cell.lattice).all()):
        return "positions are not finite"
    if cell.volume < LEAST_VOLUME * len(cell.numbers):
        return f"less than {LEAST_VOLUME:g} Å^3 an atom"
    if _coincide(cell):
        return f"two atoms are closer than {MIN_DISTANCE:g} Å"
    if isinstance(model, JaxModel) and not len(find_neighbours(cell, model.potential.cutoff).source):
        return f"no atom has a neighbour within {model.potential.cutoff:g} Å, so the model sees no crystal"
    return ""


def _coincide(cell: Cell) -> bool:
    fractional = cell.positions @ np.linalg.inv(cell.lattice)
    apart = fractional[:, None] - fractional[None, :]
    distances = np.linalg.norm((apart - np.round(apart)) @ cell.lattice, axis=2)
    return bool((distances[np.triu_indices(len(distances), 1)] < MIN_DISTANCE).any())


def _ending(path: Path, reasons: dict[str, str], settings: RelaxSettings) -> tuple[Status, str] | None:
    """Returns status and reason of a crystal that has ended, None of others."""
    if path.key in reasons:
        return "crashed", reasons[path.key]
    if path.code in _ENDINGS:
        return _ENDINGS[path.code]
    if path.seconds > settings.timeout:
        return "timeout", f"not done within {settings.timeout:g} s"
    return None


def _result(path: Path, status: Status, reason: str) -> Relaxed:
    succeeded = status in ("converged", "steps")
    energy, first = (float(each[0]) + path.reference for each in (path.state.energy, path.state.first_energy))
    return Relaxed(
        path.key,
        status,
        reason,
        energy if succeeded else None,
        None if np.isnan(first) else first,
        path.steps,
        round(path.seconds, 3),
        path.cell if succeeded else path.initial,
    )
