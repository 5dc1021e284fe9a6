"""Operations of the space groups in their standard settings, from spglib's database.

The standard setting is that of the International Tables: unique axis b and cell choice 1 in monoclinic groups, origin
choice 2 (an inversion centre at the origin) where there are two, hexagonal axes in rhombohedral groups.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import spglib
from jaxtyping import Float, Int

from crystal_jax.suppress_warnings import quiet

NUM_GROUPS = 230
GRID = 24  # all translations of operations, and all points without freedom, are multiples of 1/24
_SAME = 1e-4  # fractions of the cell; points closer than this are one

_PRIMITIVE = {
    "P": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "A": ((1, 0, 0), (0, 1 / 2, -1 / 2), (0, 1 / 2, 1 / 2)),
    "C": ((1 / 2, -1 / 2, 0), (1 / 2, 1 / 2, 0), (0, 0, 1)),
    "I": ((-1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (1 / 2, 1 / 2, -1 / 2)),
    "F": ((0, 1 / 2, 1 / 2), (1 / 2, 0, 1 / 2), (1 / 2, 1 / 2, 0)),
    "R": ((2 / 3, 1 / 3, 1 / 3), (-1 / 3, 1 / 3, 1 / 3), (-1 / 3, -2 / 3, 1 / 3)),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Operations:
    """Operations x → rotation · x + translation / GRID of a group, one for each coset of the lattice translations.

    Attributes:
        number: number of the group.
        symbol: short Hermann-Mauguin symbol, such as "Fm-3m".
        hall_number: spglib's number of the setting.
        rotations: matrices, [n, 3, 3].
        translations: multiples of 1 / `GRID`, from 0 to GRID - 1, [n, 3].
    """

    number: int
    symbol: str
    hall_number: int
    rotations: Int[np.ndarray, "n 3 3"]
    translations: Int[np.ndarray, "n 3"]

    def images(self, point: Float[np.ndarray, 3]) -> Float[np.ndarray, "n 3"]:
        """Returns the images of a point, in the cell."""
        images: Float[np.ndarray, "n 3"] = self.rotations @ point + self.translations / GRID
        return images % 1

    def orbit(self, point: Float[np.ndarray, 3]) -> Float[np.ndarray, "m 3"]:
        """Returns the different images of a point, in the cell."""
        images = self.images(point)
        apart = images[:, None] - images[None]
        same = (np.abs(apart - np.round(apart)) < _SAME).all(axis=-1)
        orbit: Float[np.ndarray, "m 3"] = images[same.argmax(axis=1) == np.arange(len(images))]
        return orbit

    @property
    def primitive_basis(self) -> Float[np.ndarray, "3 3"]:
        """Basis of the primitive lattice, as rows, in terms of the conventional one."""
        basis: Float[np.ndarray, "3 3"] = np.array(_PRIMITIVE[self.symbol[0]])
        return basis

    @property
    def num_lattice_points(self) -> int:
        """Number of lattice points in the conventional cell: 1 (P), 2 (A, C, I), 3 (R) or 4 (F)."""
        return round(1 / float(np.linalg.det(self.primitive_basis)))

    @property
    def generic_lattice(self) -> Float[np.ndarray, "3 3"]:
        """Lattice vectors, as rows, that have the group's metric and no other relation."""
        metric = np.diag([5.3, 6.1, 7.9]) ** 2 + 3.1 * (np.ones((3, 3)) - np.eye(3)) * [[0, 1, 2], [1, 0, 3], [2, 3, 0]]
        average = np.mean([r.T @ metric @ r for r in self.rotations], axis=0)
        lattice: Float[np.ndarray, "3 3"] = np.linalg.cholesky(average)
        return lattice


@functools.cache
@quiet()
def standard_operations(number: int) -> Operations:
    """Returns the operations of a space group in its standard setting.

    Args:
        number: number of the group, 1 to 230.

    Raises:
        ValueError: there is no such group.
    """
    hall_number = _standard_settings().get(number)
    if hall_number is None:
        raise ValueError(f"space groups have the numbers 1 to {NUM_GROUPS}, not {number}")
    found = spglib.get_symmetry_from_database(hall_number)
    kind = spglib.get_spacegroup_type(hall_number)
    assert found is not None
    assert kind is not None
    translations = np.round(found["translations"] * GRID).astype(int) % GRID
    return Operations(number, kind.international_short, hall_number, found["rotations"].astype(int), translations)


@quiet()
def symmetry_dataset(
    lattice: Float[np.ndarray, "3 3"],
    coordinates: Float[np.ndarray, "n 3"],
    numbers: Sequence[int],
    *,
    symprec: float,
    standard: int | None = None,
) -> spglib.SpglibDataset | None:
    """Returns what spglib finds out about a crystal; None if it finds nothing.

    Args:
        lattice: lattice vectors as rows, Å.
        coordinates: fractional coordinates.
        numbers: atomic numbers.
        symprec: tolerance, Å.
        standard: number of the space group in whose standard setting the cell is wanted; by default spglib chooses.
    """
    hall_number = 0 if standard is None else standard_operations(standard).hall_number
    cell: Any = (lattice, coordinates, numbers)  # spglib takes arrays, its annotations only lists
    try:
        return spglib.get_symmetry_dataset(cell, symprec=symprec, hall_number=hall_number)
    except Exception:  # spglib's error types change between versions
        return None


@functools.cache
def _standard_settings() -> dict[int, int]:
    """Returns spglib's number of the standard setting of each group."""
    first: dict[int, int] = {}
    second_origin: dict[int, int] = {}
    for hall_number in range(1, 531):
        setting = spglib.get_spacegroup_type(hall_number)
        assert setting is not None
        first.setdefault(setting.number, hall_number)
        if setting.choice == "2":
            second_origin[setting.number] = hall_number
    return first | second_origin
