"""Free lattice parameters of the crystal systems, in the standard setting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from pymatgen.core import Lattice

# The first space group of each crystal system.
_FIRST = ((1, "triclinic"), (3, "monoclinic"), (16, "orthorhombic"), (75, "tetragonal"), (143, "hexagonal"))
_CUBIC = 195


class LatticeParameters(NamedTuple):
    """Which of a, b, c, α, β, γ are free, and what the others are.

    Attributes:
        free: indices of the free ones, in this order.
        equal_to: for each length, the index of the length that it equals.
        angles: the fixed angles in degrees; NaN where the angle is free.
    """

    free: tuple[int, ...]
    equal_to: tuple[int, int, int]
    angles: tuple[float, float, float]

    def lattice(self, values: Sequence[float]) -> Lattice:
        """Returns the lattice with these free parameters, in Å and degrees."""
        whole = [0.0, 0.0, 0.0, *self.angles]
        for place, value in zip(self.free, values, strict=True):
            whole[place] = value
        lengths = [whole[i] for i in self.equal_to]
        return Lattice.from_parameters(*lengths, *whole[3:])

    def values(self, parameters: Sequence[float]) -> tuple[float, ...]:
        """Returns the free ones among a, b, c, α, β, γ, to four decimals; equal lengths are averaged."""
        lengths = [
            float(np.mean([parameters[j] for j in range(3) if self.equal_to[j] == self.equal_to[i]])) for i in range(3)
        ]
        whole = [*lengths, *parameters[3:]]
        return tuple(round(float(whole[i]), 4) for i in self.free)


_FREE = float("nan")
_BY_SYSTEM = {
    "triclinic": LatticeParameters((0, 1, 2, 3, 4, 5), (0, 1, 2), (_FREE, _FREE, _FREE)),
    "monoclinic": LatticeParameters((0, 1, 2, 4), (0, 1, 2), (90, _FREE, 90)),
    "orthorhombic": LatticeParameters((0, 1, 2), (0, 1, 2), (90, 90, 90)),
    "tetragonal": LatticeParameters((0, 2), (0, 0, 2), (90, 90, 90)),
    "hexagonal": LatticeParameters((0, 2), (0, 0, 2), (90, 90, 120)),
    "cubic": LatticeParameters((0,), (0, 0, 0), (90, 90, 90)),
}


def lattice_parameters(spacegroup: int) -> LatticeParameters:
    """Returns the free lattice parameters of a space group; trigonal groups have hexagonal axes."""
    return _BY_SYSTEM[lattice_system(spacegroup)]


def lattice_system(spacegroup: int) -> str:
    """Returns the shape of a group's conventional cell: trigonal groups have the hexagonal one."""
    if spacegroup >= _CUBIC:
        return "cubic"
    return [name for first, name in _FIRST if spacegroup >= first][-1]
