"""Relaxes atoms and cell to the nearest energy minimum, in batches of crystals.

One loop serves all models: when a crystal finishes, the next one takes its place in the batch at once (`relax`). The
optimizer is in `fire`, what takes its steps in `steppers`.

torch-sim has such a loop for models in PyTorch, but no adapters of CHGNet and matgl's models, and counts its steps for
the whole batch (0.3.0); so these models use this loop too.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator

import numpy as np
from pymatgen.core import Element

from crystal_jax.energy.model import Cell, EnergyModel
from crystal_jax.energy.potentials.jax_model import JaxModel
from crystal_jax.energy.relaxation.batch import Trajectory
from crystal_jax.energy.relaxation.fire import LEAST_VOLUME, LOWEST_ENERGY, VOLUME_RATIO, Code
from crystal_jax.energy.relaxation.result import Relaxed, Status
from crystal_jax.energy.relaxation.steppers import DeviceStepper, HostStepper, Room, Stepper
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
    begun = _begin(stepper, model, cells)
    passed_over: collections.deque[Trajectory] = collections.deque()
    active: list[Trajectory] = []
    while True:
        refused, joining = _join(stepper.room(active), passed_over, begun)
        yield from refused
        active += joining
        if not active:
            return
        reasons = _step(stepper, active, settings)
        going = []
        for trajectory in active:
            end = _ending(trajectory, reasons, settings)
            if end is None:
                going.append(trajectory)
            else:
                yield _result(trajectory, *end)
        active = going


def _begin(stepper: Stepper, model: EnergyModel, cells: Iterable[tuple[str, Cell]]) -> Iterator[Trajectory | Relaxed]:
    """Yields a relaxation of each crystal, or the result of one that cannot be relaxed."""
    for key, cell in cells:
        if reason := _refusal(model, cell) or stepper.refusal(cell):
            yield Relaxed(key, "refused", reason, None, None, 0, 0.0, cell)
        else:
            yield Trajectory.of(key, cell, stepper.references)


def _join(
    room: Room, passed_over: collections.deque[Trajectory], begun: Iterator[Trajectory | Relaxed]
) -> tuple[list[Relaxed], list[Trajectory]]:
    """Fills the room of a batch with crystals that were passed over before, then with further ones.

    Args:
        room: the room of the batch.
        passed_over: crystals that have not fitted so far; those that still do not fit remain.
        begun: further crystals, taken as they are needed.

    Returns:
        Results of crystals that cannot be relaxed, and the relaxations that join the batch.
    """
    refused: list[Relaxed] = []
    joining: list[Trajectory] = []
    large: list[Trajectory] = []
    while len(large) < _LOOK_AHEAD and (taken := passed_over.popleft() if passed_over else next(begun, None)):
        if isinstance(taken, Relaxed):
            refused.append(taken)
        else:
            (joining if room.take(taken) else large).append(taken)
    passed_over.extendleft(reversed(large))
    return refused, joining


def _step(stepper: Stepper, trajectories: list[Trajectory], settings: RelaxSettings) -> dict[str, str]:
    """Takes steps. If the model fails on the batch, each crystal takes a step alone.

    Returns:
        The reason of each crystal that the model fails on, by key.
    """
    try:
        stepper.step(trajectories, settings)
    except Exception as error:  # networks raise many types of errors
        if len(trajectories) == 1:
            return {trajectories[0].key: (str(error).strip().splitlines() or [type(error).__name__])[0]}
        return {
            key: reason for trajectory in trajectories for key, reason in _step(stepper, [trajectory], settings).items()
        }
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
    return ""


def _coincide(cell: Cell) -> bool:
    fractional = cell.positions @ np.linalg.inv(cell.lattice)
    apart = fractional[:, None] - fractional[None, :]
    distances = np.linalg.norm((apart - np.round(apart)) @ cell.lattice, axis=2)
    return bool((distances[np.triu_indices(len(distances), 1)] < MIN_DISTANCE).any())


def _ending(trajectory: Trajectory, reasons: dict[str, str], settings: RelaxSettings) -> tuple[Status, str] | None:
    """Returns status and reason of a crystal that has ended, None of others."""
    if trajectory.key in reasons:
        return "crashed", reasons[trajectory.key]
    if trajectory.code in _ENDINGS:
        return _ENDINGS[trajectory.code]
    if trajectory.seconds > settings.timeout:
        return "timeout", f"not done within {settings.timeout:g} s"
    return None


def _result(trajectory: Trajectory, status: Status, reason: str) -> Relaxed:
    succeeded = status in ("converged", "steps")
    energy, first = (
        float(each[0]) + trajectory.reference for each in (trajectory.state.energy, trajectory.state.first_energy)
    )
    return Relaxed(
        trajectory.key,
        status,
        reason,
        energy if succeeded else None,
        None if np.isnan(first) else first,
        trajectory.steps,
        round(trajectory.seconds, 3),
        trajectory.cell if succeeded else trajectory.initial,
    )
