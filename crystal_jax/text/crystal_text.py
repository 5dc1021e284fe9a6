"""Crystal ⇄ text, in two format versions.

The text of a crystal (Gruver et al., ICLR 2024, section 3): one line with the lattice's lengths (Å, one decimal),
one with its angles (degrees, integers), then two lines an atom, its element symbol and its coordinates (two
decimals). No newline at the end.

    5.6 4.0 5.7
    90 90 90
    Te
    0.25 0.50 0.73

`paper` reproduces the published bytes: angles are truncated (89.99 → 89) and a coordinate from 0.995 up is printed
as 1.00. `v2`, the default, rounds the angles and wraps the coordinates once more after rounding, so that each
position has one spelling.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float
from pymatgen.core import Element, Lattice, Structure

# Hydrogen to lawrencium: what has been seen in a solid, and a little more.
ELEMENTS: tuple[str, ...] = tuple(Element.from_Z(z).symbol for z in range(1, 104))
_KNOWN = frozenset(ELEMENTS)
_NUMBER = re.compile(r"-?\d+(\.\d+)?")


class CrystalTextError(ValueError):
    """A text that is no crystal: which line (from 1), what stands there, and what is wrong with it."""

    def __init__(self, line: int, text: str, problem: str):
        super().__init__(f"line {line}: {problem}: {text!r}")
        self.line, self.text, self.problem = line, text, problem


@dataclasses.dataclass(frozen=True, eq=False)
class Crystal:
    """A periodic structure in the terms of its text: no orientation, no properties.

    Attributes:
        lengths: a, b, c in Å, shape [3].
        angles: α, β, γ in degrees, shape [3].
        frac_coords: Fractional coordinates, shape [n_atoms, 3].
        symbols: Element symbols, n_atoms of them, in the order of the sites.
    """

    lengths: Float[np.ndarray, 3]
    angles: Float[np.ndarray, 3]
    frac_coords: Float[np.ndarray, "n 3"]
    symbols: tuple[str, ...]

    @classmethod
    def from_structure(cls, structure: Structure) -> Crystal:
        """Keeps the order of the sites.

        Raises:
            ValueError: the structure is disordered.
        """
        if not structure.is_ordered:
            raise ValueError(f"{structure.composition.reduced_formula} is disordered: sites with partial occupancy")
        parameters = np.array(structure.lattice.parameters)
        symbols = tuple(site.specie.symbol for site in structure)
        return cls(parameters[:3], parameters[3:], structure.frac_coords, symbols)

    def to_structure(self) -> Structure:
        """Raises ValueError where the angles form no cell."""
        if not self.forms_cell:
            raise ValueError(f"angles {self.angles.tolist()} form no cell")
        lattice = Lattice.from_parameters(*self.lengths, *self.angles)
        return Structure(lattice, list(self.symbols), self.frac_coords)

    @property
    def forms_cell(self) -> bool:
        """Each angle less than the sum of the other two, and all three less than 360°: a positive volume."""
        largest, total = self.angles.max(), self.angles.sum()
        return bool(total < 360 and 2 * largest < total)

    @property
    def matrix(self) -> Float[np.ndarray, "3 3"]:
        """Lattice vectors as rows, in Å, in pymatgen's standard orientation (c along z)."""
        return Lattice.from_parameters(*self.lengths, *self.angles).matrix

    def translated(self, shift: Float[np.ndarray, 3]) -> Crystal:
        """All sites moved by a fractional vector and wrapped into the cell."""
        return dataclasses.replace(self, frac_coords=np.mod(self.frac_coords + shift, 1))

    def permuted(self, order: Sequence[int] | np.ndarray) -> Crystal:
        """The sites in another order."""
        symbols = tuple(self.symbols[i] for i in order)
        return dataclasses.replace(self, frac_coords=self.frac_coords[np.asarray(order)], symbols=symbols)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextFormat:
    """How a crystal is spelled.

    Attributes:
        version: `v2` or `paper` (see the head of this file).
        coordinates: `fractional`, or `cartesian` (Å), the ablation of the paper's appendix.
    """

    version: Literal["v2", "paper"] = "v2"
    coordinates: Literal["fractional", "cartesian"] = "fractional"

    def __post_init__(self):
        if self.version not in ("v2", "paper"):
            raise ValueError(f"Unknown format version {self.version!r}; expected 'v2' or 'paper'")
        if self.coordinates not in ("fractional", "cartesian"):
            raise ValueError(f"Unknown coordinates {self.coordinates!r}; expected 'fractional' or 'cartesian'")

    def encode(self, crystal: Crystal) -> str:
        """The text of a crystal, as it stands: translation and permutation are the caller's choice."""
        lines = [
            " ".join(f"{x:.1f}" for x in crystal.lengths),
            " ".join(str(int(x) if self.version == "paper" else round(x)) for x in crystal.angles),
        ]
        for symbol, position in zip(crystal.symbols, self._positions(crystal).tolist(), strict=True):
            lines += [symbol, " ".join(self._printed(x) for x in position)]
        return "\n".join(lines)

    def sorted(self, crystal: Crystal) -> Crystal:
        """The sites in the order of their coordinates as printed: by x, where that is equal by y, then by z.

        A model that reads them so need only look at the last site to know which places are taken.
        """
        printed = [[float(self._printed(x)) for x in position] for position in self._positions(crystal).tolist()]
        return crystal.permuted(sorted(range(len(printed)), key=printed.__getitem__))

    def _positions(self, crystal: Crystal) -> Float[np.ndarray, "n 3"]:
        if self.coordinates == "cartesian":
            return crystal.frac_coords @ crystal.matrix
        return np.mod(crystal.frac_coords, 1)

    def _printed(self, x: float) -> str:
        text = f"{x:.2f}"
        if self.coordinates == "fractional" and self.version == "v2" and text == "1.00":
            return "0.00"
        return "0.00" if text == "-0.00" else text

    def decode(self, text: str) -> Crystal:
        """Reads a text back; empty lines are passed over, as the reference does.

        Raises:
            CrystalTextError: with the line's number and the offending text.
        """
        lines = [(i, line) for i, line in enumerate(text.split("\n"), start=1) if line]
        if len(lines) < 2:
            raise CrystalTextError(len(lines) + 1, "", "the text ends before the lattice does")
        lengths, angles = _numbers(*lines[0]), _numbers(*lines[1])
        if not (lengths > 0).all():
            raise CrystalTextError(*lines[0], "lattice lengths must be positive")
        if not ((angles > 0) & (angles < 180)).all():
            raise CrystalTextError(*lines[1], "lattice angles must lie between 0 and 180 degrees")
        symbols, coordinates = [], []
        for number, line in lines[2::2]:
            if line not in _KNOWN:
                raise CrystalTextError(number, line, "not an element symbol")
            symbols.append(line)
        for number, line in lines[3::2]:
            coordinates.append(_numbers(number, line))
        if not symbols:
            raise CrystalTextError(lines[-1][0] + 1, "", "the text ends before the first atom")
        if len(coordinates) < len(symbols):
            raise CrystalTextError(lines[-1][0] + 1, "", f"no coordinates follow the last {symbols[-1]}")
        crystal = Crystal(lengths, angles, np.array(coordinates), tuple(symbols))
        if self.coordinates == "fractional":
            return crystal
        if not crystal.forms_cell:
            raise CrystalTextError(*lines[1], "angles form no cell, so Cartesian coordinates mean nothing")
        return dataclasses.replace(crystal, frac_coords=crystal.frac_coords @ np.linalg.inv(crystal.matrix))


def _numbers(number: int, line: str) -> Float[np.ndarray, 3]:
    words = line.split(" ")
    if len(words) != 3:
        raise CrystalTextError(number, line, f"expected three numbers, found {len(words)}")
    for word in words:
        # Stricter than float(), which takes "nan", "1e5" and "1_0".
        if not _NUMBER.fullmatch(word) or not math.isfinite(float(word)):
            raise CrystalTextError(number, line, f"{word!r} is not a number")
    return np.array([float(word) for word in words])
