"""Derives the table of all Wyckoff positions from the operations of the space groups.

  python -m crystal_jax.symmetry.derive_positions

A Wyckoff position is a class of points whose site-symmetry groups are conjugate in the space group (International
Tables for Crystallography A, section 1.4.4). The points that a site-symmetry group leaves in place form a point, a
line, a plane, or all of space. So the positions of a group are the classes, under the group, of

  - the points that only the identity fixes: the general position;
  - mirror planes, fixed by a reflection;
  - rotation axes, fixed by a rotation;
  - points without freedom. Their coordinates are multiples of 1/24 in all standard settings.

The letters are spglib's, which are those of the International Tables. The table is checked in the tests against that of
pyxtal, and against spglib's letters on real crystals.
"""

from __future__ import annotations

import csv
import itertools
import string
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from crystal_jax.symmetry.operations import GRID, Operations, standard_operations, symmetry_dataset
from crystal_jax.symmetry.positions import TABLE, format_coordinates

COLUMNS = ("spacegroup", "letter", "multiplicity", "coordinates")
_LETTERS = string.ascii_lowercase + "A"  # Pmmm has 27 positions
_TRANSLATIONS = np.array(list(itertools.product(range(-3, 4), repeat=3)))
_GENERIC = (0.1234, 0.3471, 0.0873)  # parameters that put a point on no special position by accident
_OTHERS = ((0.0377, 0.1559, 0.2712), (0.4193, 0.0291, 0.1447))


Direction = tuple[int, int, int]
Key = tuple[Any, ...]


class Flat(NamedTuple):
    """Point, line, plane, or space: origin + directions · parameters, modulo lattice translations.

    Attributes:
        origin: multiples of 1 / `GRID`.
        directions: primitive integer vectors, as rows; the entry at `free` of each is 1 and of the others 0, where the
            direction allows that.
    """

    origin: tuple[int, int, int]
    directions: tuple[Direction, ...]

    def point(self, parameters: Sequence[float]) -> Float[np.ndarray, 3]:
        """Returns the point with these parameters."""
        point = np.array(self.origin) / GRID
        for direction, parameter in zip(self.directions, parameters, strict=False):
            point = point + np.array(direction) * parameter
        return point


def main() -> None:
    """Writes the table."""
    rows = [row for number in range(1, 231) for row in positions_of(number)]
    with TABLE.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(rows)
    print(f"{len(rows)} positions: {TABLE}")


def positions_of(number: int) -> list[tuple[int, str, int, str]]:
    """Returns a group's positions, the general one last: number, letter, multiplicity, coordinates."""
    operations = standard_operations(number)
    classes = [_simplest(members) for members in _classes(operations)]
    letters = _letters(number, operations, classes)
    rows = []
    for letter, flat in zip(letters, classes, strict=True):
        multiplicity = len(operations.orbit(flat.point(_GENERIC)))
        rows.append((number, letter, multiplicity, format_coordinates(flat.origin, flat.directions)))
    return sorted(rows, key=lambda row: _LETTERS.index(row[1]))


def _classes(operations: Operations) -> Iterator[list[Flat]]:
    """Yields the classes of flats, each with all its members in the cell."""
    seen: set[Key] = set()
    for flat in itertools.chain(_points(operations), _axes(operations), _mirrors(operations), (Flat((0, 0, 0), _ALL),)):
        if _key(flat) in seen:
            continue
        members = {_key(image): image for image in _images(operations, flat)}
        seen |= members.keys()
        yield list(members.values())


_ALL = ((1, 0, 0), (0, 1, 0), (0, 0, 1))


def _points(operations: Operations) -> Iterator[Flat]:
    """Yields the points of the grid whose site-symmetry group fixes nothing else."""
    grid = np.array(list(itertools.product(range(GRID), repeat=3)))
    order, trace = np.zeros(len(grid), int), np.zeros(len(grid), int)
    for rotation, translation in zip(operations.rotations, operations.translations, strict=True):
        fixed = ((grid @ rotation.T + translation - grid) % GRID == 0).all(axis=1)
        order += fixed
        trace += fixed * np.trace(rotation)
    # The average trace of a group's matrices is the dimension of what they leave fixed.
    for point in grid[trace == 0]:
        yield Flat(tuple(point.tolist()), ())


def _axes(operations: Operations) -> Iterator[Flat]:
    for rotation, translation in zip(operations.rotations, operations.translations, strict=True):
        if round(np.linalg.det(rotation)) == 1 and not np.array_equal(rotation, np.eye(3)):
            yield from _fixed(rotation, translation)


def _mirrors(operations: Operations) -> Iterator[Flat]:
    for rotation, translation in zip(operations.rotations, operations.translations, strict=True):
        if round(np.linalg.det(rotation)) == -1 and np.trace(rotation) == 1:
            yield from _fixed(rotation, translation)


def _fixed(rotation: Int[np.ndarray, "3 3"], translation: Int[np.ndarray, 3]) -> Iterator[Flat]:
    """Yields what an operation, with all lattice translations, leaves in place."""
    moved = np.eye(3, dtype=int) - rotation
    directions = _null_space(moved)
    inverse = np.linalg.pinv(moved.astype(float))
    for shift in _TRANSLATIONS:
        target = translation / GRID + shift
        origin = inverse @ target
        if np.allclose(moved @ origin, target, atol=1e-6):  # otherwise it is a screw or a glide
            yield _through(origin, directions)


def _null_space(matrix: Int[np.ndarray, "3 3"]) -> tuple[Direction, ...]:
    """Returns a basis of primitive integer vectors in reduced echelon form, as far as integers allow."""
    small = [np.array(v) for v in itertools.product(range(-2, 3), repeat=3) if any(v)]
    inside = [v for v in small if not (matrix @ v).any() and np.gcd.reduce(v) == 1]
    dimension = 3 - np.linalg.matrix_rank(matrix)
    return _echelon(inside, int(dimension))


def _echelon(vectors: Sequence[Int[np.ndarray, 3]], dimension: int) -> tuple[Direction, ...]:
    best = None
    for chosen in itertools.permutations(vectors, dimension):
        basis = np.array(chosen)
        if np.linalg.matrix_rank(basis) < dimension:
            continue
        for free in itertools.combinations(range(3), dimension):
            if np.array_equal(basis[:, free], np.eye(dimension)):
                rank = (free, np.abs(basis).sum())
                if best is None or rank < best[0]:
                    best = rank, tuple(map(_direction, basis))
    if best is None:  # such as (2, 1, 0) in a hexagonal group: another member of its class is in this form
        basis = next(v for v in vectors if (v[v != 0][0]) > 0)
        return (_direction(basis),)
    return best[1]


def _direction(vector: Int[np.ndarray, 3]) -> Direction:
    return int(vector[0]), int(vector[1]), int(vector[2])


def _through(origin: Float[np.ndarray, 3], directions: tuple[Direction, ...]) -> Flat:
    """Returns the flat through a point, whose origin is 0 in the free coordinates, and reduced modulo translations."""
    origin = origin.copy()
    for direction in directions:
        place = next(i for i in range(3) if direction[i] and all(d is direction or not d[i] for d in directions))
        origin -= np.array(direction) * origin[place] / direction[place]
    return Flat(_in_cell(origin), directions)


def _in_cell(point: Float[np.ndarray, 3]) -> Direction:
    """Returns the equivalent point in the cell, in multiples of 1 / `GRID`."""
    whole = [Fraction(float(x)).limit_denominator(GRID) * GRID for x in point]
    assert all(x.denominator == 1 for x in whole), point
    return _direction(np.array([int(x) % GRID for x in whole]))


def _images(operations: Operations, flat: Flat) -> Iterator[Flat]:
    origin = np.array(flat.origin) / GRID
    for rotation, translation in zip(operations.rotations, operations.translations, strict=True):
        turned = [rotation @ np.array(direction) for direction in flat.directions]
        directions = _echelon_of_span(turned)
        yield _through(rotation @ origin + translation / GRID, directions)


def _echelon_of_span(vectors: Sequence[Int[np.ndarray, 3]]) -> tuple[Direction, ...]:
    if not vectors:
        return ()
    basis = np.array(vectors)
    projector = np.eye(3) - np.linalg.pinv(basis.astype(float)) @ basis
    return _null_space(np.round(projector * 210).astype(int)) if len(vectors) < 3 else _ALL


def _key(flat: Flat) -> Key:
    """Returns what is equal for flats that differ by a lattice translation."""
    return flat.directions, _invariants(flat)


def _invariants(flat: Flat) -> tuple[int, ...]:
    """Returns the products of the origin with integer vectors normal to the flat, modulo 1, times `GRID`."""
    normals = _normals(flat.directions)
    return tuple(int(np.dot(normal, flat.origin)) % GRID for normal in normals)


def _normals(directions: tuple[Direction, ...]) -> list[Int[np.ndarray, 3]]:
    """Returns a basis of all integer vectors normal to the directions."""
    if not directions:
        return list(np.eye(3, dtype=int))
    if len(directions) == 3:
        return []
    if len(directions) == 2:
        normal = np.cross(*np.array(directions))
        return [normal // np.gcd.reduce(normal)]
    direction = np.array(directions[0])
    small = [np.array(v) for v in itertools.product(range(-2, 3), repeat=3) if any(v)]
    inside = [v for v in small if not v @ direction]
    for a, b in itertools.combinations(inside, 2):
        cross = np.cross(a, b)
        if np.array_equal(np.abs(cross), np.abs(direction)):  # they generate all normal vectors
            return [a, b]
    raise AssertionError(direction)


def _simplest(members: Sequence[Flat]) -> Flat:
    """Returns the member that is easiest to read."""

    def rank(flat: Flat) -> tuple[Any, ...]:
        is_echelon = all(
            any(d[i] == 1 and all(e is d or e[i] == 0 for e in flat.directions) for i in range(3))
            for d in flat.directions
        )
        negative = sum(x < 0 for d in flat.directions for x in d)
        return (
            not is_echelon,
            sum(abs(x) for d in flat.directions for x in d),
            negative,
            sum(x != 0 for x in flat.origin),
            flat.origin,
            tuple(tuple(-x for x in d) for d in flat.directions),
        )

    return min(members, key=rank)


def _letters(number: int, operations: Operations, classes: Sequence[Flat]) -> list[str]:
    """Returns spglib's letter of each class."""
    general = [operations.orbit(np.array(generic)) for generic in _OTHERS]
    by_class = {}
    for flat in classes:
        point = flat.point(_GENERIC)
        orbit = operations.orbit(point)
        positions = np.concatenate([orbit, *general])
        kinds = np.repeat(np.arange(1 + len(general)), [len(orbit), *map(len, general)])
        found = symmetry_dataset(operations.generic_lattice, positions, kinds.tolist(), symprec=1e-4, standard=number)
        assert found is not None
        assert found.number == number, (number, found.number)
        in_standard = found.transformation_matrix @ point + found.origin_shift
        by_class[_class_of(in_standard, operations, classes)] = found.wyckoffs[0]
    assert len(set(by_class.values())) == len(classes), by_class
    return [by_class[i] for i in range(len(classes))]


def _class_of(point: Float[np.ndarray, 3], operations: Operations, classes: Sequence[Flat]) -> int:
    """Returns the class that a point belongs to, the one with the least freedom."""
    images = operations.orbit(point)
    for i in sorted(range(len(classes)), key=lambda i: len(classes[i].directions)):
        flat = classes[i]
        normals = np.array(_normals(flat.directions)).reshape(-1, 3)
        off = (images - np.array(flat.origin) / GRID) @ normals.T
        if (np.abs(off - np.round(off)) < 1e-5).all(axis=1).any():
            return i
    raise AssertionError(point)


if __name__ == "__main__":
    main()
