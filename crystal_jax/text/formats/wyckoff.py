"""Text of a crystal by its symmetry: space group, free lattice parameters, and orbits on Wyckoff positions.

A line with the number of the space group; a line with the free lengths of the lattice (Å, one decimal) and, in
monoclinic and triclinic groups, one with the free angles (degrees); and a line for each orbit, with its element, its
position (multiplicity in the conventional cell, and letter), and the coordinates that are free there. An optional first
line has the composition of the primitive cell. Lithium iron phosphate:

    Li4Fe4P4O16
    62
    10.3 6.0 4.7
    Li 4a
    Fe 4c 0.28 0.97
    P 4c 0.09 0.42
    O 4c 0.10 0.74
    O 4c 0.46 0.21
    O 8d 0.17 0.05 0.28

All else follows from the space group in its standard setting (crystal_jax/symmetry). The orbits are in the order of
elements by electronegativity, then letters, then coordinates. So the text has the symmetry that it states, and its
length does not grow with the multiplicities: 28 atoms here, in six lines.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter

from crystal_jax.symmetry.crystal import Orbit, SymmetricCrystal
from crystal_jax.symmetry.lattices import lattice_parameters
from crystal_jax.symmetry.normalizer import canonical, sorted_orbits
from crystal_jax.symmetry.operations import NUM_GROUPS, standard_operations
from crystal_jax.symmetry.positions import WyckoffPosition, positions
from crystal_jax.text.crystal_text import ELEMENTS, Crystal
from crystal_jax.text.layout import CrystalTextError, composition_line, composition_of

_KNOWN = frozenset(ELEMENTS)
_NUMBER = re.compile(r"\d+(\.\d+)?")
_NUM_LENGTHS = 3  # of the six lattice parameters, the first three are lengths


def canonical_crystal(crystal: Crystal) -> SymmetricCrystal:
    """Returns the chosen description of a crystal by its symmetry.

    Raises:
        SymmetryError: it has none.
    """
    return canonical(SymmetricCrystal.from_structure(crystal.to_structure()))


@dataclasses.dataclass(frozen=True, kw_only=True)
class WyckoffFormat:
    """Text format of crystals by their symmetry.

    Attributes:
        has_composition: whether the first line is the composition of the primitive cell.
        decimals: decimals of a coordinate: 2 or 3.
    """

    has_composition: bool = True
    decimals: int = 2

    def __post_init__(self) -> None:
        if self.decimals not in (2, 3):
            raise ValueError(f"coordinates have 2 or 3 decimals, not {self.decimals!r}")

    def encode(self, crystal: SymmetricCrystal) -> str:
        """Returns the text of a crystal."""
        free = zip(lattice_parameters(crystal.spacegroup).free, crystal.lattice, strict=True)
        lengths, angles = [], []
        for place, value in free:
            if place < _NUM_LENGTHS:
                lengths.append(f"{value:.1f}")
            else:
                angles.append(str(round(value)))
        lines = [str(crystal.spacegroup), " ".join(lengths), *([" ".join(angles)] if angles else [])]
        for orbit in sorted_orbits(tuple(map(self._rounded, crystal.orbits))):
            symbol = crystal.position(orbit).symbol
            lines.append(" ".join([orbit.element, symbol, *map(self._printed, orbit.parameters)]))
        if self.has_composition:
            points = standard_operations(crystal.spacegroup).num_lattice_points
            counts = {element: number // points for element, number in crystal.composition.items()}
            lines.insert(0, composition_line(Counter(counts).elements()))
        return "\n".join(lines)

    def decode(self, text: str) -> SymmetricCrystal:
        """Parses a text.

        Raises:
            CrystalTextError: the text is malformed, or contradicts itself: a letter that the space group lacks, a
                position without freedom that is occupied twice, a composition that the orbits do not add up to.
        """
        lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line]
        composition = self._composition(lines.pop(0) if lines else (1, "")) if self.has_composition else None
        spacegroup = _spacegroup(*(lines.pop(0) if lines else (text.count("\n") + 2, "")))
        num_angles = sum(place >= _NUM_LENGTHS for place in lattice_parameters(spacegroup).free)
        lattice_lines, lines = lines[: 2 if num_angles else 1], lines[2 if num_angles else 1 :]
        if not lines:
            raise CrystalTextError(text.count("\n") + 2, "", "the text ends before the first orbit")
        lattice = _lattice(spacegroup, lattice_lines)
        by_symbol = {place.symbol: place for place in positions(spacegroup)}
        by_letter = {place.letter: place for place in by_symbol.values()}
        orbits, occupied = [], set[str]()
        for number, line in lines:
            orbit = _orbit(number, line, by_symbol)
            if orbit.letter in occupied and not by_letter[orbit.letter].num_free:
                symbol = by_letter[orbit.letter].symbol
                raise CrystalTextError(number, line, f"position {symbol} has one place, which is occupied")
            occupied.add(orbit.letter)
            orbits.append(orbit)
        crystal = SymmetricCrystal(spacegroup, lattice, tuple(orbits))
        points = standard_operations(spacegroup).num_lattice_points
        found = {element: number // points for element, number in crystal.composition.items()}
        if composition is not None and composition != found:
            stated, written = (composition_line(Counter(counts).elements()) for counts in (composition, found))
            raise CrystalTextError(lines[-1][0], lines[-1][1], f"the orbits make {written}, not {stated}")
        return crystal

    def _composition(self, line: tuple[int, str]) -> dict[str, int]:
        found = composition_of(line[1])
        if found is None:
            raise CrystalTextError(*line, "expected a composition")
        return found

    def _rounded(self, orbit: Orbit) -> Orbit:
        return orbit._replace(parameters=tuple(float(self._printed(x)) for x in orbit.parameters))

    def _printed(self, x: float) -> str:
        text = f"{x:.{self.decimals}f}"
        return f"{0:.{self.decimals}f}" if float(text) == 1 else text


def _spacegroup(number: int, line: str) -> int:
    if not line.isdecimal() or not 1 <= int(line) <= NUM_GROUPS:
        raise CrystalTextError(number, line, f"expected the number of a space group, 1 to {NUM_GROUPS}")
    return int(line)


def _lattice(spacegroup: int, lines: list[tuple[int, str]]) -> tuple[float, ...]:
    places = lattice_parameters(spacegroup).free
    lengths = [place for place in places if place < _NUM_LENGTHS]
    values = []
    for (number, line), what, wanted in zip(
        lines, ("lengths", "angles"), (len(lengths), len(places) - len(lengths)), strict=False
    ):
        words = line.split(" ")
        if len(words) != wanted:
            raise CrystalTextError(
                number, line, f"space group {spacegroup} has {wanted} free {what} of the lattice, not {len(words)}"
            )
        for word in words:
            value = _number(number, line, word)
            if what == "lengths" and not value > 0:
                raise CrystalTextError(number, line, "lattice lengths must be positive")
            if what == "angles" and not 0 < value < 180:
                raise CrystalTextError(number, line, "lattice angles must lie between 0 and 180 degrees")
            values.append(value)
    return tuple(values)


def _orbit(number: int, line: str, by_symbol: dict[str, WyckoffPosition]) -> Orbit:
    element, *rest = line.split(" ")
    if element not in _KNOWN:
        raise CrystalTextError(number, line, "not an element symbol")
    if not rest or rest[0] not in by_symbol:
        raise CrystalTextError(number, line, f"expected one of the positions {', '.join(by_symbol)}")
    symbol, *coordinates = rest
    place = by_symbol[symbol]
    if len(coordinates) != place.num_free:
        raise CrystalTextError(
            number, line, f"position {symbol} has {place.num_free} free coordinates, not {len(coordinates)}"
        )
    return Orbit(element, place.letter, tuple(_number(number, line, word) for word in coordinates))


def _number(number: int, line: str, word: str) -> float:
    if not _NUMBER.fullmatch(word) or not math.isfinite(float(word)):
        raise CrystalTextError(number, line, f"{word!r} is not a number")
    return float(word)
