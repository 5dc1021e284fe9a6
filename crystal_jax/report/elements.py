"""Element properties for drawings: position in the periodic table, colour, radius."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable
from importlib import resources
from typing import NamedTuple

from monty.serialization import loadfn
from pymatgen.core import Composition, Element

LIGHTEST, DARKEST = (232, 240, 250), (13, 71, 130)  # RGB ends of the heat map
DEFAULT_RADIUS = 1.5  # Å, for the few elements without a measured radius
F_BLOCK_ROW = {57: 9, 89: 10}  # lanthanides and actinides are drawn below the table, in grid rows 9 and 10


class Tile(NamedTuple):
    """Tile of an element in the heat map: grid position from 1, number of crystals, colours."""

    symbol: str
    name: str
    row: int
    column: int
    crystals: int
    background: str
    dark: bool


def heat_map(formulas: Iterable[str]) -> list[Tile]:
    """Returns tiles of the elements up to Z = 103, coloured by how many formulas contain them (root scale)."""
    counts = Counter(element.symbol for formula in formulas for element in Composition(formula))
    most = max(counts.values(), default=1)
    return [_tile(Element.from_Z(z), counts, most) for z in range(1, 104)]


def _tile(element: Element, counts: Counter[str], most: int) -> Tile:
    first = next((z for z in F_BLOCK_ROW if z <= element.Z < z + 15), None)
    row, column = (F_BLOCK_ROW[first], 3 + element.Z - first) if first else (element.row, element.group)
    count = counts[element.symbol]
    share = (count / most) ** 0.5
    rgb = (round(low + share * (high - low)) for low, high in zip(LIGHTEST, DARKEST, strict=True))
    background = "#{:02x}{:02x}{:02x}".format(*rgb) if count else "#f5f6f8"
    return Tile(element.symbol, element.long_name, row, column, count, background, share > 0.55)


@functools.cache
def _jmol_colors() -> dict[str, list[int]]:
    with resources.as_file(resources.files("pymatgen.vis").joinpath("ElementColorSchemes.yaml")) as path:
        return loadfn(path)["Jmol"]


def color(symbol: str) -> str:
    """Returns the element's colour in Jmol's scheme as #rrggbb."""
    return "#{:02x}{:02x}{:02x}".format(*_jmol_colors().get(symbol, (190, 190, 190)))


def radius(symbol: str) -> float:
    """Returns the element's atomic radius in Å (Slater 1964); sums of two are typical bond lengths."""
    return float(Element(symbol).atomic_radius or DEFAULT_RADIUS)
