"""Crystals as graphs of atoms and bonds, padded to a fixed size, so that one compiled program serves all batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Int
from pymatgen.optimization.neighbors import find_points_in_spheres

from crystal_jax.energy.model import Cell

AnyArray = Array | np.ndarray  # packed by the host, computed by a device

_TOLERANCE = 1e-8  # Å; a neighbour closer than this is the atom itself


class Graph(NamedTuple):
    """Atoms and bonds of a batch of crystals; indices run over the whole batch.

    The last crystal and the last atom are padding. Unused bonds lead from the last atom to itself, with a lattice
    translation of its crystal, so that no bond has zero length.

    Attributes:
        numbers: Atomic number of each atom.
        crystal: Crystal of each atom, sorted.
        source: First atom of each bond, sorted.
        target: Second atom of each bond.
        shift: Lattice translation of the target's image, in whole lattice vectors.
    """

    numbers: Int[AnyArray, " a"]
    crystal: Int[AnyArray, " a"]
    source: Int[AnyArray, " e"]
    target: Int[AnyArray, " e"]
    shift: Int[AnyArray, "e 3"]


@dataclasses.dataclass(frozen=True, order=True)
class Bucket:
    """Size of a padded batch, padding included."""

    atoms: int
    bonds: int
    crystals: int


class Packing:
    """The room that is left in padded batches of one size, one batch for each device."""

    def __init__(self, bucket: Bucket, num_batches: int = 1):
        # One atom and one crystal of each batch are padding.
        self._free = np.tile([bucket.atoms - 1, bucket.bonds, bucket.crystals - 1], (num_batches, 1))

    def place(self, num_atoms: int, num_bonds: int) -> int | None:
        """Puts a crystal into the batch with the most room for bonds.

        Returns:
            The number of the batch; None if the crystal does not fit.
        """
        batch, needed = int(self._free[:, 1].argmax()), (num_atoms, num_bonds, 1)
        if (self._free[batch] < needed).any():
            return None
        self._free[batch] -= needed
        return batch


def choose_bucket(
    sizes: Sequence[tuple[int, int]], buckets: Sequence[Bucket], num_batches: int = 1
) -> tuple[Bucket, list[int | None]]:
    """Returns the smallest bucket that holds all crystals, and the batch of each crystal.

    If no bucket holds all, the largest one does, and crystals that do not fit have no batch. If not even the first
    crystal fits, it is alone in a bucket that is doubled until it does.

    Args:
        sizes: numbers of atoms and bonds of the crystals.
        buckets: the sizes of batches to choose from, ascending.
        num_batches: number of batches, one for each device.
    """
    for bucket in buckets:
        packing = Packing(bucket, num_batches)
        batches = [packing.place(*size) for size in sizes]
        if None not in batches:
            break
    if sizes and not any(batch is not None for batch in batches):
        atoms, bonds = sizes[0]
        while atoms >= bucket.atoms or bonds > bucket.bonds:
            bucket = Bucket(2 * bucket.atoms, 2 * bucket.bonds, bucket.crystals)
        batches[0] = 0
    return bucket, batches


class Neighbours(NamedTuple):
    """Bonds of one crystal, sorted by source."""

    source: Int[np.ndarray, " e"]
    target: Int[np.ndarray, " e"]
    shift: Int[np.ndarray, "e 3"]


def find_neighbours(cell: Cell, radius: float) -> Neighbours:
    """Returns all bonds of a crystal up to a length in Å. Coinciding atoms have none between them."""
    positions, lattice = np.ascontiguousarray(cell.positions), np.ascontiguousarray(cell.lattice)
    source, target, image, distance = find_points_in_spheres(
        positions, positions, r=radius, pbc=np.ones(3, dtype=np.int64), lattice=lattice, tol=_TOLERANCE
    )
    kept = np.flatnonzero(distance > _TOLERANCE)
    kept = kept[np.argsort(source[kept], kind="stable")]
    return Neighbours(source[kept], target[kept], image[kept])


def pack(numbers: Sequence[np.ndarray], neighbours: Sequence[Neighbours], bucket: Bucket) -> Graph:
    """Packs crystals, given as atomic numbers and bonds, into one padded graph.

    Raises:
        ValueError: the bucket is too small.
    """
    sizes = np.array([len(each) for each in numbers], dtype=np.int64)
    begin = np.cumsum(sizes) - sizes
    atoms, bonds = int(sizes.sum()), sum(len(each.source) for each in neighbours)
    if atoms >= bucket.atoms or bonds > bucket.bonds or len(numbers) >= bucket.crystals:
        raise ValueError(f"{atoms} atoms, {bonds} bonds and {len(numbers)} crystals do not fit into {bucket}")
    last_atom = bucket.atoms - 1
    graph = Graph(
        numbers=np.ones(bucket.atoms, np.int32),
        crystal=np.full(bucket.atoms, bucket.crystals - 1, np.int32),
        source=np.full(bucket.bonds, last_atom, np.int32),
        target=np.full(bucket.bonds, last_atom, np.int32),
        shift=np.tile(np.array([1, 0, 0], np.int32), (bucket.bonds, 1)),
    )
    if len(numbers):
        graph.numbers[:atoms] = np.concatenate(list(numbers))
        graph.crystal[:atoms] = np.repeat(np.arange(len(numbers)), sizes)
        graph.source[:bonds] = np.concatenate([n.source + b for n, b in zip(neighbours, begin, strict=True)])
        graph.target[:bonds] = np.concatenate([n.target + b for n, b in zip(neighbours, begin, strict=True)])
        graph.shift[:bonds] = np.concatenate([n.shift for n in neighbours])
    return graph
