"""Relaxations in progress, and how a batch of them is packed into padded arrays and unpacked again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from crystal_jax.energy.model import Cell
from crystal_jax.energy.potentials.graph import Bucket
from crystal_jax.energy.relaxation.fire import Code, Crystals, FireState, begin

_PER_ATOM = frozenset({"positions", "velocity"})


@dataclasses.dataclass(eq=False)
class Path:
    """Relaxation in progress of one crystal.

    Attributes:
        key: key of the crystal.
        initial: the crystal before relaxation.
        reference: sum of the elements' reference energies, eV.
        state: state of the optimizer; arrays of one crystal.
        seconds: time spent on this crystal.
    """

    key: str
    initial: Cell
    reference: float
    state: FireState
    seconds: float = 0.0

    @classmethod
    def of(cls, key: str, cell: Cell, references: Float[np.ndarray, " z"]) -> Path:
        """Begins a relaxation."""
        return cls(key, cell, float(references[cell.numbers].sum()), begin(cell.positions))

    @property
    def num_atoms(self) -> int:
        """Number of atoms of the cell."""
        return len(self.initial.numbers)

    @property
    def code(self) -> Code:
        """What has become of the crystal."""
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


def pack_crystals(paths: Sequence[Path], bucket: Bucket, dtype: type) -> tuple[FireState, Crystals]:
    """Packs relaxations into padded arrays. The padding is a crystal that has ended."""
    filler = begin(np.zeros((0, 3)))._replace(
        deformation=np.eye(3)[None], code=np.full(1, Code.CONVERGED, np.int32), energy=np.zeros(1)
    )

    def padded(name: str) -> np.ndarray:
        size = bucket.atoms if name in _PER_ATOM else bucket.crystals
        parts = [getattr(path.state, name) for path in paths]
        like = getattr(filler, name)
        array = np.zeros((size, *like.shape[1:]), dtype if like.dtype == np.float64 else like.dtype)
        used = sum(map(len, parts))
        if parts:
            array[:used] = np.concatenate(parts)
        if name not in _PER_ATOM:
            array[used:] = like[0]
        return array

    sizes = [path.num_atoms for path in paths]
    crystal = np.full(bucket.atoms, bucket.crystals - 1, np.int32)
    crystal[: sum(sizes)] = np.repeat(np.arange(len(paths)), sizes)
    count: np.ndarray = np.ones(bucket.crystals, dtype)
    count[: len(paths)] = sizes
    lattice: np.ndarray = np.tile(10 * np.eye(3, dtype=dtype), (bucket.crystals, 1, 1))
    reference: np.ndarray = np.zeros(bucket.crystals, dtype)
    for row, path in enumerate(paths):
        lattice[row], reference[row] = path.initial.lattice, path.reference
    return FireState(*map(padded, FireState._fields)), Crystals(crystal, count, lattice, reference)


def unpack_state(state: FireState, paths: Sequence[Path]) -> None:
    """Writes the arrays of a batch back to its relaxations."""
    arrays = FireState(*map(np.asarray, state))
    ends = np.cumsum([path.num_atoms for path in paths])
    for row, (path, end) in enumerate(zip(paths, ends, strict=True)):
        begin, atoms = end - path.num_atoms, arrays._asdict()
        path.state = FireState(
            **{
                name: array[begin:end].copy() if name in _PER_ATOM else array[row : row + 1].copy()
                for name, array in atoms.items()
            }
        )
