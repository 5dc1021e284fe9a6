"""Wyckoff positions of the space groups, from the table that `derive_positions` writes."""

from __future__ import annotations

import csv
import dataclasses
import functools
import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from crystal_jax.symmetry.operations import GRID, NUM_GROUPS, standard_operations

TABLE = Path(__file__).parent / "wyckoff_positions.csv"
SAME = 1e-3  # fractions of the cell; a point closer than this to a position is on it

_AXES = "xyz"
_TERM = re.compile(r"([+-]?)(\d*)([xyz])|([+-]?\d+(?:/\d+)?)")
# Parameters at which no two images of a point coincide by accident.
_GENERIC = np.array([0.1234, 0.3471, 0.0873])


@dataclasses.dataclass(frozen=True, eq=False)
class WyckoffPosition:
    """Wyckoff position: the points origin + parameters · directions, and their images under the group.

    A parameter is a coordinate of the point: that of the axis where its direction has a 1 and the others a 0.

    Attributes:
        spacegroup: number of the space group.
        letter: letter of the International Tables, a to z, and A.
        coordinates: as in the International Tables: "x,-x,1/4".
        origin: fractional coordinates.
        directions: integer vectors, [num_free, 3].
        axes: axis of each parameter, 0 to 2.
    """

    spacegroup: int
    letter: str
    coordinates: str
    origin: Float[np.ndarray, 3]
    directions: Int[np.ndarray, "k 3"]
    axes: tuple[int, ...]

    @property
    def num_free(self) -> int:
        """Number of free parameters, 0 to 3."""
        return len(self.axes)

    @property
    def multiplicity(self) -> int:
        """Number of points in the conventional cell."""
        return len(self._images[0])

    def points(self, parameters: Sequence[float] | np.ndarray) -> Float[np.ndarray, "m 3"]:
        """Returns the points in the conventional cell, the representative one first.

        Args:
            parameters: `num_free` numbers.
        """
        matrices, shifts = self._images
        points: Float[np.ndarray, "m 3"] = (matrices @ np.asarray(parameters, float) + shifts) % 1
        return points

    def parameters(self, points: Float[np.ndarray, "n 3"], *, tolerance: float = SAME) -> Float[np.ndarray, "j k"]:
        """Returns the parameters, from 0 to 1, of those points that are representative points of this position.

        Args:
            points: fractional coordinates.
            tolerance: fractions of the cell.
        """
        found = points[:, list(self.axes)]
        off = points - self.origin - found @ self.directions
        on = (np.abs(off - np.round(off)) < tolerance).all(axis=1)
        parameters: Float[np.ndarray, "j k"] = found[on] % 1
        return parameters

    @property
    def symbol(self) -> str:
        """Multiplicity and letter, as 4c."""
        return f"{self.multiplicity}{self.letter}"

    @functools.cached_property
    def _images(self) -> tuple[Float[np.ndarray, "m 3 k"], Float[np.ndarray, "m 3"]]:
        """The representative point's images: matrices and shifts of the parameters."""
        operations = standard_operations(self.spacegroup)
        matrices = operations.rotations @ self.directions.T
        shifts = operations.rotations @ self.origin + operations.translations / GRID
        points = matrices @ _GENERIC[: self.num_free] + shifts
        apart = points[:, None] - points[None]
        same = (np.abs(apart - np.round(apart)) < SAME).all(axis=-1)
        first = same.argmax(axis=1) == np.arange(len(points))
        return matrices[first].astype(float), shifts[first]


@functools.cache
def positions(spacegroup: int) -> tuple[WyckoffPosition, ...]:
    """Returns the positions of a space group, from the most special one, a, to the general one.

    Args:
        spacegroup: number, 1 to 230.

    Raises:
        ValueError: there is no such group.
    """
    standard_operations(spacegroup)
    return tuple(_position(spacegroup, letter, coordinates) for letter, coordinates in _table()[spacegroup])


def position(spacegroup: int, letter: str) -> WyckoffPosition:
    """Returns the position with this letter.

    Raises:
        ValueError: there is no such group, or it has no such letter.
    """
    for found in positions(spacegroup):
        if found.letter == letter:
            return found
    letters = "".join(found.letter for found in positions(spacegroup))
    raise ValueError(f"space group {spacegroup} has the Wyckoff positions {letters}, not {letter!r}")


@functools.cache
def position_symbols() -> tuple[str, ...]:
    """Returns the symbols of all positions of all groups: 186, from 1a to 192l, by multiplicity, then letter."""
    found = {(p.multiplicity, p.letter) for number in range(1, NUM_GROUPS + 1) for p in positions(number)}
    return tuple(f"{multiplicity}{letter}" for multiplicity, letter in sorted(found))


@functools.cache
def _table() -> dict[int, list[tuple[str, str]]]:
    table: dict[int, list[tuple[str, str]]] = {}
    with TABLE.open(newline="") as file:
        for row in csv.DictReader(file):
            table.setdefault(int(row["spacegroup"]), []).append((row["letter"], row["coordinates"]))
    return table


def _position(spacegroup: int, letter: str, coordinates: str) -> WyckoffPosition:
    origin = np.zeros(3)
    factors = {name: np.zeros(3, int) for name in _AXES}
    for axis, part in enumerate(coordinates.split(",")):
        for sign, factor, name, number in _TERM.findall(part):
            if name:
                factors[name][axis] = int(f"{sign}{factor or 1}")
            else:
                origin[axis] = Fraction(number)
    axes = tuple(i for i, name in enumerate(_AXES) if factors[name].any())
    directions = np.array([factors[_AXES[i]] for i in axes], int).reshape(-1, 3)
    return WyckoffPosition(spacegroup, letter, coordinates, origin, directions, axes)


def format_coordinates(origin: Sequence[int], directions: Sequence[Sequence[int]]) -> str:
    """Returns coordinates as in the International Tables: "x,-x,1/4".

    Args:
        origin: multiples of 1 / `GRID`.
        directions: integer vectors, one for each free parameter.
    """
    names = [_AXES[next(i for i in range(3) if direction[i])] for direction in directions]
    parts = []
    for axis in range(3):
        text = ""
        for name, direction in zip(names, directions, strict=True):
            if factor := direction[axis]:
                sign = "-" if factor < 0 else "+" if text else ""
                text += sign + ("" if abs(factor) == 1 else str(abs(factor))) + name
        if origin[axis] or not text:
            text += ("+" if text else "") + str(Fraction(origin[axis], GRID))
        parts.append(text)
    return ",".join(parts)
