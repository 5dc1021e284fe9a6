"""Crystals described by space group, free lattice parameters, and orbits on Wyckoff positions."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from pymatgen.core import Element, Structure

from crystal_jax.symmetry.lattices import lattice_parameters
from crystal_jax.symmetry.operations import standard_operations, symmetry_dataset
from crystal_jax.symmetry.positions import WyckoffPosition, position, positions

SYMPREC = 0.1  # Å; the value the Materials Project uses
# Where no description is found: spglib may find one group and fail in its standard setting, near the tolerance's edge.
_SMALLER = (1.0, 0.3, 0.1, 0.01)
_SAME_ATOM = 1e-5  # fractions of the primitive cell
_IMAGE = 2e-3  # fractions of the cell: spglib's idealised coordinates differ by rounding


class SymmetryError(ValueError):
    """A structure cannot be described in its space group."""


class Orbit(NamedTuple):
    """Atoms of an element on a Wyckoff position.

    Attributes:
        element: symbol.
        letter: letter of the position.
        parameters: its free parameters: coordinates of the representative atom, from 0 to 1.
    """

    element: str
    letter: str
    parameters: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class SymmetricCrystal:
    """Crystal in the standard setting of its space group.

    Attributes:
        spacegroup: number, 1 to 230.
        lattice: the free lattice parameters, in the order a, b, c, α, β, γ; Å and degrees.
        orbits: the orbits.
    """

    spacegroup: int
    lattice: tuple[float, ...]
    orbits: tuple[Orbit, ...]

    @classmethod
    def from_structure(cls, structure: Structure, *, symprec: float = SYMPREC) -> SymmetricCrystal:
        """Describes a structure, idealised to the symmetry that it has within a tolerance.

        Args:
            structure: any cell of the crystal.
            symprec: spglib's tolerance, Å. Where the structure has no description at it, smaller ones are tried.

        Raises:
            SymmetryError: no tolerance gives a description.
        """
        for factor in _SMALLER:
            found = _standardized(structure, symprec * factor)
            if found is not None:
                number, lattice, coordinates, numbers = found
                try:
                    orbits = _orbits(number, coordinates, numbers)
                except SymmetryError:
                    continue
                free = lattice_parameters(number).values(lattice)
                return cls(number, free, orbits)
        raise SymmetryError(f"{structure.composition.reduced_formula} has no description in a standard setting")

    @property
    def num_atoms(self) -> int:
        """Number of atoms in the conventional cell."""
        return sum(self.position(orbit).multiplicity for orbit in self.orbits)

    @property
    def num_atoms_primitive(self) -> int:
        """Number of atoms in the primitive cell."""
        return self.num_atoms // standard_operations(self.spacegroup).num_lattice_points

    @property
    def composition(self) -> Counter[str]:
        """Atoms of each element in the conventional cell."""
        counts: Counter[str] = Counter()
        for orbit in self.orbits:
            counts[orbit.element] += self.position(orbit).multiplicity
        return counts

    def position(self, orbit: Orbit) -> WyckoffPosition:
        """Returns the Wyckoff position of an orbit."""
        return position(self.spacegroup, orbit.letter)

    def to_structure(self, *, primitive: bool = True) -> Structure:
        """Returns the structure, in the primitive cell or in the conventional one."""
        lattice = lattice_parameters(self.spacegroup).lattice(self.lattice)
        points = [self.position(orbit).points(orbit.parameters) for orbit in self.orbits]
        species = [orbit.element for orbit, group in zip(self.orbits, points, strict=True) for _ in group]
        conventional = Structure(lattice, species, np.concatenate(points))
        return self._primitive(conventional) if primitive else conventional

    def _primitive(self, conventional: Structure) -> Structure:
        """Returns the primitive cell of the conventional one, by the group's centring: without a search."""
        basis = standard_operations(self.spacegroup).primitive_basis
        lattice = basis @ conventional.lattice.matrix
        coordinates = conventional.frac_coords @ np.linalg.inv(basis)
        apart = coordinates[:, None] - coordinates[None]
        same = (np.abs(apart - np.round(apart)) < _SAME_ATOM).all(axis=-1)
        first = np.flatnonzero(same.argmax(axis=1) == np.arange(len(same)))
        return Structure(lattice, [conventional[i].specie for i in first], coordinates[first] % 1)


def _standardized(
    structure: Structure, symprec: float
) -> tuple[int, tuple[float, ...], Float[np.ndarray, "n 3"], Int[np.ndarray, " n"]] | None:
    """Returns the number of the space group, and the conventional cell in its standard setting, idealised."""
    cell = (structure.lattice.matrix, structure.frac_coords, [site.specie.Z for site in structure])
    any_setting = symmetry_dataset(*cell, symprec=symprec)
    if any_setting is None:
        return None
    number = any_setting.number
    found = symmetry_dataset(*cell, symprec=symprec, standard=number)
    if found is None or found.number != number:
        return None
    lengths = np.linalg.norm(found.std_lattice, axis=1)
    unit = found.std_lattice / lengths[:, None]
    angles = [float(np.degrees(np.arccos(np.clip(unit[(i + 1) % 3] @ unit[(i + 2) % 3], -1, 1)))) for i in range(3)]
    return number, (*map(float, lengths), *angles), found.std_positions, found.std_types


def _orbits(number: int, coordinates: Float[np.ndarray, "n 3"], numbers: Int[np.ndarray, " n"]) -> tuple[Orbit, ...]:
    """Divides the atoms of a conventional cell into orbits.

    Raises:
        SymmetryError: the images of an atom are not all there.
    """
    left = list(range(len(coordinates)))
    orbits = []
    while left:
        images = standard_operations(number).orbit(coordinates[left[0]])
        apart = coordinates[left][:, None] - images[None]
        members = (np.abs(apart - np.round(apart)) < _IMAGE).all(axis=-1).any(axis=1)
        orbit = [i for i, member in zip(left, members, strict=True) if member]
        if len(orbit) != len(images) or len({int(numbers[i]) for i in orbit}) != 1:
            raise SymmetryError(f"an atom of space group {number} has {len(orbit)} images, not {len(images)}")
        orbits.append(_orbit(number, Element.from_Z(int(numbers[orbit[0]])).symbol, coordinates[orbit]))
        left = [i for i in left if i not in set(orbit)]
    return tuple(orbits)


def _orbit(number: int, element: str, points: Float[np.ndarray, "m 3"]) -> Orbit:
    """Returns the orbit of all these points: on the most special position that has as many."""
    for place in positions(number):
        if place.multiplicity == len(points):
            parameters = place.parameters(points, tolerance=_IMAGE)
            if len(parameters):
                return Orbit(element, place.letter, _smallest(parameters))
    raise SymmetryError(f"{len(points)} atoms of {element} are on no Wyckoff position of space group {number}")


def _smallest(parameters: Float[np.ndarray, "j k"]) -> tuple[float, ...]:
    """Returns the parameters of the representative point that comes first, to four decimals."""
    rounded = np.round(parameters, 4) % 1
    return min(map(tuple, rounded.tolist()))
