"""Equivalent descriptions of a crystal, and the one that is chosen among them.

A change of origin or axes that maps a space group to itself is an operation of its normaliser (International Tables A,
chapter 3.5). It gives another description of the same crystal: in rock salt, either element may be at the origin.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from pymatgen.core import Element

from crystal_jax.symmetry.crystal import Orbit, SymmetricCrystal
from crystal_jax.symmetry.lattices import lattice_parameters, lattice_system
from crystal_jax.symmetry.operations import GRID, Operations, standard_operations
from crystal_jax.symmetry.positions import position, positions

_DECIMALS = 3  # descriptions that agree to so many decimals are compared by what comes after


Key = tuple[int, ...]


class NormalizerOperation(NamedTuple):
    """Change of coordinates x → rotation · x + translation that maps a space group to itself.

    Attributes:
        rotation: integer matrix, [3, 3].
        translation: fractions of the cell.
        letters: the letter to which each letter is mapped.
    """

    rotation: Int[np.ndarray, "3 3"]
    translation: Float[np.ndarray, 3]
    letters: dict[str, str]


def canonical(crystal: SymmetricCrystal) -> SymmetricCrystal:
    """Returns the description chosen among the equivalent ones, with sorted orbits.

    It has the first letters; among those with the same letters, the shortest a, then b, then the smallest coordinates.
    """
    return min(equivalents(crystal), key=_rank)


def equivalents(crystal: SymmetricCrystal) -> Iterator[SymmetricCrystal]:
    """Yields the equivalent descriptions of a crystal, with sorted orbits.

    Where the origin is free along an axis, as in P1 and along the c axis of Pna2_1, an atom of the element with the
    fewest orbits is put at 0 on it, each in turn.
    """
    polar = polar_axes(crystal.spacegroup)
    for operation in normalizer(crystal.spacegroup):
        moved = _moved(crystal, operation)
        if not polar:
            yield moved
            continue
        for anchor in _anchors(moved):
            yield _shifted(moved, anchor, polar)


def random_equivalent(crystal: SymmetricCrystal, rng: np.random.Generator) -> SymmetricCrystal:
    """Returns one of the equivalent descriptions at random; along free axes, the origin is anywhere."""
    operations = normalizer(crystal.spacegroup)
    moved = _moved(crystal, operations[rng.integers(len(operations))])
    polar = polar_axes(crystal.spacegroup)
    if not polar:
        return moved
    shift = np.zeros(3)
    shift[list(polar)] = rng.random(len(polar))
    return _translated(moved, shift)


def sorted_orbits(orbits: tuple[Orbit, ...]) -> tuple[Orbit, ...]:
    """Returns orbits in the order of elements by electronegativity, then letters, then parameters."""
    return tuple(
        sorted(
            orbits,
            key=lambda orbit: (_electronegativity(orbit.element), _letter_rank(orbit.letter), orbit.parameters),
        )
    )


@functools.cache
def _electronegativity(symbol: str) -> tuple[float, str]:
    """Returns the place of an element in formulas: by Pauling's electronegativity, then by symbol."""
    return float(Element(symbol).data.get("X") or math.inf), symbol


def _letter_rank(letter: str) -> int:
    return 26 if letter == "A" else ord(letter) - ord("a")


def _rank(crystal: SymmetricCrystal) -> tuple[Any, ...]:
    letters = tuple(_letter_rank(orbit.letter) for orbit in crystal.orbits)
    lengths = tuple(round(x, _DECIMALS) for x in crystal.lattice)
    return letters, lengths, tuple(tuple(round(x, _DECIMALS) % 1 for x in orbit.parameters) for orbit in crystal.orbits)


def _moved(crystal: SymmetricCrystal, operation: NormalizerOperation) -> SymmetricCrystal:
    orbits = []
    for orbit in crystal.orbits:
        points = crystal.position(orbit).points(orbit.parameters) @ operation.rotation.T + operation.translation
        orbits.append(_orbit_at(crystal.spacegroup, orbit.element, operation.letters[orbit.letter], points))
    rules = lattice_parameters(crystal.spacegroup)
    vectors = np.linalg.inv(operation.rotation).T @ rules.lattice(crystal.lattice).matrix
    lengths = np.linalg.norm(vectors, axis=1)
    cosines = [vectors[i] @ vectors[j] / lengths[i] / lengths[j] for i, j in ((1, 2), (0, 2), (0, 1))]
    parameters = (*map(float, lengths), *(float(np.degrees(np.arccos(c))) for c in cosines))
    return SymmetricCrystal(crystal.spacegroup, rules.values(parameters), sorted_orbits(tuple(orbits)))


def _orbit_at(spacegroup: int, element: str, letter: str, points: Float[np.ndarray, "m 3"]) -> Orbit:
    """Returns the orbit of these points; the representative point that comes first describes it."""
    parameters = np.round(position(spacegroup, letter).parameters(points), 4) % 1
    return Orbit(element, letter, min(map(tuple, parameters.tolist())))


def _anchors(crystal: SymmetricCrystal) -> list[Orbit]:
    """Returns the orbits of the element with the fewest of them; the first in the order of electronegativity."""
    elements = [orbit.element for orbit in crystal.orbits]
    chosen = min(dict.fromkeys(elements), key=elements.count)
    return [orbit for orbit in crystal.orbits if orbit.element == chosen]


def _shifted(crystal: SymmetricCrystal, anchor: Orbit, polar: tuple[int, ...]) -> SymmetricCrystal:
    """Moves the origin along the free axes so that an orbit has the coordinate 0 there."""
    at = crystal.position(anchor).points(anchor.parameters)[0]
    shift = np.zeros(3)
    shift[list(polar)] = -at[list(polar)]
    return _translated(crystal, shift)


def _translated(crystal: SymmetricCrystal, shift: Float[np.ndarray, 3]) -> SymmetricCrystal:
    orbits = tuple(
        _orbit_at(
            crystal.spacegroup, orbit.element, orbit.letter, crystal.position(orbit).points(orbit.parameters) + shift
        )
        for orbit in crystal.orbits
    )
    return SymmetricCrystal(crystal.spacegroup, crystal.lattice, sorted_orbits(orbits))


@functools.cache
def polar_axes(spacegroup: int) -> tuple[int, ...]:
    """Returns the axes, 0 to 2, along which the origin of a space group is free."""
    rotations = standard_operations(spacegroup).rotations
    return tuple(axis for axis in range(3) if (rotations[:, :, axis] == np.eye(3, dtype=int)[axis]).all())


@functools.cache
def normalizer(spacegroup: int) -> tuple[NormalizerOperation, ...]:
    """Returns one operation of the normaliser for each coset of the space group, the identity first.

    In triclinic and monoclinic groups, the axes keep their lengths: the standard setting has the shortest ones.
    """
    operations = standard_operations(spacegroup)
    present = {_key(r, t) for r, t in zip(operations.rotations, operations.translations, strict=True)}
    seen: set[Key] = set()
    found = []
    for rotation in _rotations(spacegroup):
        for translation in _translations(operations, rotation, present, polar_axes(spacegroup)):
            if _key(rotation, translation) in seen:
                continue
            for r, t in zip(operations.rotations, operations.translations, strict=True):
                seen.add(_key(r @ rotation, r @ translation + t))
            found.append(_with_letters(spacegroup, rotation, translation / GRID))
    return tuple(found)


def _key(rotation: Int[np.ndarray, "3 3"], translation: Int[np.ndarray, 3]) -> Key:
    return (*rotation.ravel().tolist(), *(translation % GRID).tolist())


def _rotations(spacegroup: int) -> Iterator[Int[np.ndarray, "3 3"]]:
    """Yields the rotations that map the lattice to itself, or exchange the axes of an orthorhombic one.

    Rotoinversions are left out: they keep a chiral crystal from itself, and add nothing in other groups.
    """
    identity = np.eye(3, dtype=int)
    system = lattice_system(spacegroup)
    if system in ("triclinic", "monoclinic"):
        yield identity
        if system == "monoclinic":
            yield np.diag([-1, 1, -1])
        return
    if system == "hexagonal":
        sixfold = np.array([[1, -1, 0], [1, 0, 0], [0, 0, 1]])
        twofold = np.array([[0, 1, 0], [1, 0, 0], [0, 0, -1]])
        for turns, flipped in itertools.product(range(6), (identity, twofold)):
            yield np.linalg.matrix_power(sixfold, turns) @ flipped
        return
    for order in itertools.permutations(range(3)):
        if system == "tetragonal" and order[2] != 2:
            continue
        for signs in itertools.product((1, -1), repeat=3):
            rotation = np.diag(signs) @ identity[list(order)]
            if round(np.linalg.det(rotation)) == 1:
                yield rotation


def _translations(
    operations: Operations, rotation: Int[np.ndarray, "3 3"], present: set[Key], polar: tuple[int, ...]
) -> Iterator[Int[np.ndarray, 3]]:
    """Yields the translations, in multiples of 1 / GRID, with which a rotation maps the group to itself."""
    inverse = np.round(np.linalg.inv(rotation)).astype(int)
    rotations = rotation @ operations.rotations @ inverse
    translations = operations.translations @ rotation.T
    steps = [range(1) if axis in polar else range(0, GRID, _step(operations.number, axis)) for axis in range(3)]
    candidates = np.array(list(itertools.product(*steps)))
    by_rotation: dict[Key, set[Key]] = {}
    for key in present:
        by_rotation.setdefault(key[:9], set()).add(key[9:])
    for turned, moved in zip(rotations, translations, strict=True):
        allowed = by_rotation.get(tuple(turned.ravel().tolist()))
        if allowed is None:
            return
        images = (moved + candidates @ (np.eye(3, dtype=int) - turned).T) % GRID
        codes = images @ (GRID * GRID, GRID, 1)
        candidates = candidates[np.isin(codes, [x * GRID * GRID + y * GRID + z for x, y, z in allowed])]
    yield from candidates


def _step(number: int, axis: int) -> int:
    """Returns the step of the translations to try, in multiples of 1 / GRID: thirds and quarters, or eighths."""
    if lattice_system(number) == "hexagonal":
        return 8 if axis < 2 else 2
    return 3


def _with_letters(
    spacegroup: int, rotation: Int[np.ndarray, "3 3"], translation: Float[np.ndarray, 3]
) -> NormalizerOperation:
    letters = {}
    for place in positions(spacegroup):
        images = place.points([0.1234, 0.3471, 0.0873][: place.num_free]) @ rotation.T + translation
        letters[place.letter] = next(
            other.letter
            for other in positions(spacegroup)
            if other.multiplicity == place.multiplicity and len(other.parameters(images))
        )
    return NormalizerOperation(rotation, translation, letters)
