"""Relaxations in progress, and how a batch of them is packed into padded arrays and unpacked again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from crystal_jax.energy.model import Cell
from crystal_jax.energy.potentials.graph import Bucket, Neighbours
from crystal_jax.energy.relaxation.fire import Code, Crystals, FireState, begin

_PER_ATOM = frozenset({"positions", "velocity"})


class Bonds(NamedTuple):
    """Bonds of a crystal, and the geometry for which they were found."""

    neighbours: Neighbours
    positions: Float[np.ndarray, "a 3"]
    deformation: Float[np.ndarray, "3 3"]


@dataclasses.dataclass(eq=False)
class Trajectory:
    """Relaxation in progress of one crystal.

    Attributes:
        key: key of the crystal.
        initial: the crystal before relaxation.
        reference: sum of the elements' reference energies, eV.
        state: state of the optimizer; arrays of one crystal.
        seconds: time spent on this crystal.
        bonds: its bonds, if they have been found.
    """

    key: str
    initial: Cell
    reference: float
    state: FireState
    seconds: float = 0.0
    bonds: Bonds | None = None

    @classmethod
    def of(cls, key: str, cell: Cell, references: Float[np.ndarray, " z"]) -> Trajectory:
        """Begins a relaxation."""
        return cls(key, cell, float(references[cell.numbers].sum()), begin(cell.positions))

    @property
    def num_atoms(self) -> int:
        """Number of atoms of the cell."""
        return len(self.initial.numbers)

    @property
    def code(self) -> Code:
        """State of the relaxation."""
        return Code(int(self.state.code[0]))

    @property
    def steps(self) -> int:
        """Number of steps taken."""
        return int(self.state.steps[0])

    @property
    def deformation(self) -> Float[np.ndarray, "3 3"]:
        """Deformation gradient of the cell."""
        return np.asarray(self.state.deformation[0], np.float64) / self.num_atoms

    @property
    def cell(self) -> Cell:
        """The crystal as it is now."""
        deformation = self.deformation
        positions = np.asarray(self.state.positions, np.float64) @ deformation.T
        return Cell(self.initial.numbers, positions, self.initial.lattice @ deformation.T)


def pack_crystals(trajectories: Sequence[Trajectory], bucket: Bucket, dtype: type) -> tuple[FireState, Crystals]:
    """Packs relaxations into padded arrays. The padding is a crystal that has ended."""
    filler = begin(np.zeros((0, 3)))._replace(
        deformation=np.eye(3)[None], code=np.full(1, Code.CONVERGED, np.int32), energy=np.zeros(1)
    )

    def padded(name: str) -> np.ndarray:
        size = bucket.atoms if name in _PER_ATOM else bucket.crystals
        parts = [getattr(trajectory.state, name) for trajectory in trajectories]
        like = getattr(filler, name)
        array = np.zeros((size, *like.shape[1:]), dtype if like.dtype == np.float64 else like.dtype)
        used = sum(map(len, parts))
        if parts:
            array[:used] = np.concatenate(parts)
        if name not in _PER_ATOM:
            array[used:] = like[0]
        return array

    sizes = [trajectory.num_atoms for trajectory in trajectories]
    crystal = np.full(bucket.atoms, bucket.crystals - 1, np.int32)
    crystal[: sum(sizes)] = np.repeat(np.arange(len(trajectories)), sizes)
    count: np.ndarray = np.ones(bucket.crystals, dtype)
    count[: len(trajectories)] = sizes
    lattice: np.ndarray = np.tile(10 * np.eye(3, dtype=dtype), (bucket.crystals, 1, 1))
    reference: np.ndarray = np.zeros(bucket.crystals, dtype)
    for row, trajectory in enumerate(trajectories):
        lattice[row], reference[row] = trajectory.initial.lattice, trajectory.reference
    return FireState(*map(padded, FireState._fields)), Crystals(crystal, count, lattice, reference)


def unpack_state(state: FireState, trajectories: Sequence[Trajectory]) -> None:
    """Writes the arrays of a batch back to its relaxations."""
    arrays = FireState(*map(np.asarray, state))
    ends = np.cumsum([trajectory.num_atoms for trajectory in trajectories])
    for row, (trajectory, end) in enumerate(zip(trajectories, ends, strict=True)):
        begin, atoms = end - trajectory.num_atoms, arrays._asdict()
        trajectory.state = FireState(
            **{
                name: array[begin:end].copy() if name in _PER_ATOM else array[row : row + 1].copy()
                for name, array in atoms.items()
            }
        )
