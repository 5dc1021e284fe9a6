"""Converts crystals to text and back, in five format versions.

The text of a crystal (Gruver et al., ICLR 2024, section 3) has one line with the lattice's lengths (Å, one decimal),
one with its angles (degrees, integers), then two lines per atom: its element symbol and its coordinates (two
decimals). There is no newline at the end.

    5.6 4.0 5.7
    90 90 90
    Te
    0.25 0.50 0.73

`paper` reproduces the published bytes: angles are truncated (89.99 → 89) and a coordinate from 0.995 up is printed
as 1.00. `plain`, the default, rounds the angles and wraps the coordinates again after rounding, so that each position
has one spelling.

`composition_first` is `plain` with a composition line before the lattice, such as `Te4Se4`. The model decides the
composition at once, instead of site by site.

`cif` has the same numbers as `plain` in CIF syntax (text/layout.py), as CrystaLLM reads them (Antunes et al., Nature
Communications 15, 10570, 2024): a `data_` block with the composition, the cell, the symmetry, and a loop over the
sites. All sites are written, in P 1, so the formats differ only in syntax.

`wyckoff` describes a crystal by its symmetry (text/formats/wyckoff.py), with a composition line.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float

from crystal_jax.text.layout import (
    CIF,
    COMPOSITION_FIRST,
    LATTICE_WORDS,
    PLAIN,
    CrystalTextError,
    Layout,
    Word,
    cif_words,
    plain_words,
)

if TYPE_CHECKING:
    from pymatgen.core import Structure

# Hydrogen to lawrencium: the elements observed in solids, and a few more.
ELEMENTS: tuple[str, ...] = (
    "H", "He", "Li", "Be", "B", "C", "N", "O", "F", "Ne", "Na", "Mg", "Al", "Si", "P", "S", "Cl", "Ar", "K", "Ca",
    "Sc", "Ti", "V", "Cr", "Mn", "Fe", "Co", "Ni", "Cu", "Zn", "Ga", "Ge", "As", "Se", "Br", "Kr", "Rb", "Sr", "Y",
    "Zr", "Nb", "Mo", "Tc", "Ru", "Rh", "Pd", "Ag", "Cd", "In", "Sn", "Sb", "Te", "I", "Xe", "Cs", "Ba", "La", "Ce",
    "Pr", "Nd", "Pm", "Sm", "Eu", "Gd", "Tb", "Dy", "Ho", "Er", "Tm", "Yb", "Lu", "Hf", "Ta", "W", "Re", "Os", "Ir",
    "Pt", "Au", "Hg", "Tl", "Pb", "Bi", "Po", "At", "Rn", "Fr", "Ra", "Ac", "Th", "Pa", "U", "Np", "Pu", "Am", "Cm",
    "Bk", "Cf", "Es", "Fm", "Md", "No", "Lr",
)  # fmt: skip
_KNOWN = frozenset(ELEMENTS)
VERSIONS = ("plain", "composition_first", "paper", "cif", "wyckoff")
_NUMBER = re.compile(r"-?\d+(\.\d+)?")


@dataclasses.dataclass(frozen=True, eq=False)
class Crystal:
    """Periodic structure as its text describes it: without orientation and properties.

    Attributes:
        lengths: a, b, c in Å, shape [3].
        angles: α, β, γ in degrees, shape [3].
        frac_coords: fractional coordinates, shape [n_atoms, 3].
        symbols: n_atoms element symbols, in the order of the sites.
    """

    lengths: Float[np.ndarray, 3]
    angles: Float[np.ndarray, 3]
    frac_coords: Float[np.ndarray, "n 3"]
    symbols: tuple[str, ...]

    @classmethod
    def from_structure(cls, structure: Structure) -> Crystal:
        """Converts a structure; the order of the sites is kept.

        Raises:
            ValueError: the structure is disordered.
        """
        if not structure.is_ordered:
            raise ValueError(f"{structure.composition.reduced_formula} is disordered: sites with partial occupancy")
        parameters = np.array(structure.lattice.parameters)
        symbols = tuple(site.specie.symbol for site in structure)
        return cls(parameters[:3], parameters[3:], structure.frac_coords, symbols)

    def to_structure(self) -> Structure:
        """Converts the crystal to a structure.

        Raises:
            ValueError: the angles form no cell.
        """
        if not self.forms_cell:
            raise ValueError(f"angles {self.angles.tolist()} form no cell")
        from pymatgen.core import Lattice, Structure  # late: commands that only define flags need no pymatgen

        lattice = Lattice.from_parameters(*self.lengths, *self.angles)
        return Structure(lattice, list(self.symbols), self.frac_coords)

    @property
    def forms_cell(self) -> bool:
        """Whether the angles form a cell of positive volume: each is less than the sum of the others, and their sum is
        less than 360°.
        """
        largest, total = self.angles.max(), self.angles.sum()
        return bool(total < 360 and 2 * largest < total)

    @property
    def matrix(self) -> Float[np.ndarray, "3 3"]:
        """Lattice vectors as rows, in Å, in pymatgen's standard orientation (c along z)."""
        from pymatgen.core import Lattice  # late, as above

        return Lattice.from_parameters(*self.lengths, *self.angles).matrix

    def translated(self, shift: Float[np.ndarray, 3]) -> Crystal:
        """Translates all sites by a fractional vector and wraps them into the cell."""
        return dataclasses.replace(self, frac_coords=np.mod(self.frac_coords + shift, 1))

    def permuted(self, order: Sequence[int] | np.ndarray) -> Crystal:
        """Permutes the sites."""
        symbols = tuple(self.symbols[i] for i in order)
        return dataclasses.replace(self, frac_coords=self.frac_coords[np.asarray(order)], symbols=symbols)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextFormat:
    """Text format of crystals.

    Attributes:
        version: `plain`, `composition_first`, `paper`, `cif` or `wyckoff` (see the module's docstring).
        coordinates: `fractional`, or `cartesian` (Å), the ablation in the paper's appendix.
        decimals: decimals of a coordinate: 1, 2 or 3. The paper has 2.
    """

    version: Literal["plain", "composition_first", "paper", "cif", "wyckoff"] = "plain"
    coordinates: Literal["fractional", "cartesian"] = "fractional"
    decimals: int = 2

    def __post_init__(self) -> None:
        if self.version not in VERSIONS:
            raise ValueError(
                f"Unknown format version {self.version!r}; expected one of {', '.join(map(repr, VERSIONS))}"
            )
        if self.coordinates not in ("fractional", "cartesian"):
            raise ValueError(f"Unknown coordinates {self.coordinates!r}; expected 'fractional' or 'cartesian'")
        if self.decimals not in (1, 2, 3):
            raise ValueError(f"Coordinates have 1, 2 or 3 decimals, not {self.decimals!r}")
        if self.version == "paper" and self.decimals != 2:
            raise ValueError(f"The version 'paper' has 2 decimals, not {self.decimals}; 'plain' can have them")
        if self.version in ("cif", "wyckoff") and self.coordinates != "fractional":
            raise ValueError(f"The version {self.version!r} has fractional coordinates only")
        if self.version == "wyckoff" and self.decimals == 1:
            raise ValueError("The version 'wyckoff' has 2 or 3 decimals, not 1")

    @property
    def layout(self) -> Layout:
        """Separators between the numbers."""
        with_line = dict.fromkeys(("composition_first", "wyckoff"), COMPOSITION_FIRST)
        return {"cif": CIF, **with_line}.get(self.version, PLAIN)

    def encode(self, crystal: Crystal) -> str:
        """Returns the text of a crystal. Translation and permutation of sites are left to the caller."""
        if self.version == "wyckoff":
            from crystal_jax.text.formats import wyckoff  # late, as above

            return wyckoff.WyckoffFormat(decimals=self.decimals).encode(wyckoff.canonical_crystal(crystal))
        words = [f"{x:.1f}" for x in crystal.lengths]
        words += [str(int(x) if self.version == "paper" else round(x)) for x in crystal.angles]
        for symbol, position in zip(crystal.symbols, self._positions(crystal).tolist(), strict=True):
            words += [symbol, *(self._printed(x) for x in position)]
        return self.layout.first_line(crystal.symbols) + self.layout.join(words)

    def sorted(self, crystal: Crystal) -> Crystal:
        """Sorts the sites by their coordinates as printed: by x, then y, then z.

        With sorted sites, a model needs only the last site to know which positions may follow. The version `wyckoff`
        has an order of its own.
        """
        if self.version == "wyckoff":
            return crystal
        printed = [[float(self._printed(x)) for x in position] for position in self._positions(crystal).tolist()]
        return crystal.permuted(sorted(range(len(printed)), key=printed.__getitem__))

    def coordinate_values(self) -> tuple[str, ...]:
        """Returns all possible coordinates as printed; Cartesian ones up to 100 Å."""
        scale = 10**self.decimals
        numbers = range(1 - 100 * scale, 100 * scale) if self.coordinates == "cartesian" else range(scale)
        values = tuple(f"{i / scale:.{self.decimals}f}" for i in numbers)
        return (*values, "1.00") if self.version == "paper" and self.coordinates == "fractional" else values

    def _positions(self, crystal: Crystal) -> Float[np.ndarray, "n 3"]:
        cartesian = self.coordinates == "cartesian"
        positions: Float[np.ndarray, "n 3"] = (
            crystal.frac_coords @ crystal.matrix if cartesian else np.mod(crystal.frac_coords, 1)
        )
        return positions

    def _printed(self, x: float) -> str:
        text, zero = f"{x:.{self.decimals}f}", f"{0:.{self.decimals}f}"
        if self.coordinates == "fractional" and self.version != "paper" and float(text) == 1:
            return zero
        return zero if text == f"-{zero}" else text

    def words(self, text: str) -> list[Word]:
        """Splits a text into words: three lengths, three angles, then an element and three coordinates per atom.

        Raises:
            CrystalTextError: a line is missing or malformed.
        """
        return cif_words(text) if self.layout is CIF else plain_words(text, self.layout)

    def decode(self, text: str) -> Crystal:
        """Parses a text. Cartesian coordinates become NaN if the angles form no cell.

        Raises:
            CrystalTextError: the text is malformed; the error has the line's number and text.
        """
        if self.version == "wyckoff":
            from crystal_jax.text.formats.wyckoff import WyckoffFormat  # late, as above

            return Crystal.from_structure(WyckoffFormat(decimals=self.decimals).decode(text).to_structure())
        words = self.words(text)
        lattice = np.array([_number(word) for word in words[:LATTICE_WORDS]])
        lengths, angles = lattice[:3], lattice[3:]
        for word, number in zip(words, lengths, strict=False):
            if not number > 0:
                raise CrystalTextError(word.line, word.text, "lattice lengths must be positive")
        for word, number in zip(words[3:], angles, strict=False):
            if not 0 < number < 180:
                raise CrystalTextError(word.line, word.text, "lattice angles must lie between 0 and 180 degrees")
        symbols, coordinates = [], []
        for place, word in enumerate(words[LATTICE_WORDS:]):
            if place % 4:
                coordinates.append(_number(word))
                continue
            if word.value not in _KNOWN:
                raise CrystalTextError(word.line, word.text, "not an element symbol")
            symbols.append(word.value)
        crystal = Crystal(lengths, angles, np.reshape(coordinates, (-1, 3)), tuple(symbols))
        if self.coordinates == "fractional":
            return crystal
        if not crystal.forms_cell:  # still parsed: such a text is an invalid sample
            return dataclasses.replace(crystal, frac_coords=np.full_like(crystal.frac_coords, np.nan))
        return dataclasses.replace(crystal, frac_coords=crystal.frac_coords @ np.linalg.inv(crystal.matrix))


def _number(word: Word) -> float:
    # Stricter than float(), which accepts "nan", "1e5" and "1_0".
    if not _NUMBER.fullmatch(word.value) or not math.isfinite(float(word.value)):
        raise CrystalTextError(word.line, word.text, f"{word.value!r} is not a number")
    return float(word.value)
