"""Separators between the numbers of a crystal's text, for writing and parsing.

A text is a sequence of words: three lengths, three angles, then an element and three coordinates per atom. Formats
differ in the separators:

    data_Na1Cl1                                     5.6 5.6 5.6
    _cell_length_a 5.6                              90 90 90
    _cell_length_b 5.6                              Na
    _cell_length_c 5.6                              0.00 0.00 0.00
    _cell_angle_alpha 90                            Cl
    _cell_angle_beta 90                             0.50 0.50 0.50
    _cell_angle_gamma 90
    _symmetry_space_group_name_H-M 'P 1'
    loop_
    _atom_site_label
    _atom_site_fract_x
    _atom_site_fract_y
    _atom_site_fract_z
    Na 0.00 0.00 0.00
    Cl 0.50 0.50 0.50

A label is only the element, without a number. A composition may come first, as in the first line of a CIF
(`composition_line`).
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

LATTICE_WORDS, ATOM_WORDS = 6, 4


class CrystalTextError(ValueError):
    """Parse error of a crystal's text, with the line's number (from 1), its text, and the problem."""

    def __init__(self, line: int, text: str, problem: str):
        super().__init__(f"line {line}: {problem}: {text!r}")
        self.line, self.text, self.problem = line, text, problem


class Word(NamedTuple):
    """Word of a text, with the number (from 1) and text of its line."""

    value: str
    line: int
    text: str


class Layout(NamedTuple):
    """Separators before each word.

    Attributes:
        lattice: separators before the six numbers of the lattice.
        first, later: separators before the element of the first atom, and of the other atoms.
        coordinates: separators before x, y, z.
        block: text before the composition in the composition line; None for formats without this line.
    """

    lattice: tuple[str, str, str, str, str, str]
    first: str
    later: str
    coordinates: tuple[str, str, str]
    block: str | None

    def separator(self, place: int) -> str:
        """Returns the separator before the word with this index in a crystal, from 0."""
        if place < LATTICE_WORDS:
            return self.lattice[place]
        atom, part = divmod(place - LATTICE_WORDS, ATOM_WORDS)
        return self.coordinates[part - 1] if part else self.later if atom else self.first

    def join(self, words: Iterable[str]) -> str:
        """Joins words to a text, without the composition line."""
        return "".join(self.separator(place) + word for place, word in enumerate(words))

    def first_line(self, symbols: Iterable[str]) -> str:
        """Returns the composition line before the lattice; empty for formats without it."""
        return "" if self.block is None else self.block + composition_line(symbols)


_NUMBERS = " ", " ", "\n", " ", " "
PLAIN = Layout(("", *_NUMBERS), "\n", "\n", ("\n", " ", " "), block=None)
COMPOSITION_FIRST = PLAIN._replace(lattice=("\n", *_NUMBERS), block="")

_KEYS = tuple(f"_cell_length_{axis}" for axis in "abc") + tuple(f"_cell_angle_{a}" for a in ("alpha", "beta", "gamma"))
_LOOP = (
    "_symmetry_space_group_name_H-M 'P 1'",
    "loop_",
    "_atom_site_label",
    *(f"_atom_site_fract_{axis}" for axis in "xyz"),
)
_BLOCK = "data_"
_BEFORE_LATTICE = tuple(f"\n{key} " for key in _KEYS)
CIF = Layout(
    _BEFORE_LATTICE,  # type: ignore[arg-type]  # there are six
    "\n" + "\n".join((*_LOOP, "")),
    "\n",
    (" ", " ", " "),
    block=_BLOCK,
)

MASK = "[MASK]"  # replaces the masked element in an infilling prompt
_COUNTED = re.compile(rf"([A-Z][a-z]?|{re.escape(MASK)})([1-9][0-9]*)")


def composition_line(symbols: Iterable[str]) -> str:
    """Returns each element with its number of atoms in the cell, as Na4Cl4, in the order of electronegativity, as in a
    formula.
    """
    counts = Counter(symbols)
    return "".join(f"{symbol}{counts[symbol]}" for symbol in in_order(counts))


def in_order(symbols: Iterable[str]) -> tuple[str, ...]:
    """Sorts elements by increasing electronegativity."""
    values = _electronegativity()
    return tuple(sorted(symbols, key=lambda symbol: (values[symbol], symbol)))


@functools.cache
def _electronegativity() -> Mapping[str, float]:
    from pymatgen.core import Element  # late: commands that only define flags need no pymatgen

    values = {element.symbol: element.data.get("X") or math.inf for element in Element}
    return values | {MASK: 0.0}  # first, so that its position does not reveal the element


def composition_of(line: str) -> dict[str, int] | None:
    """Parses a `composition_line` to numbers of atoms by element; returns None for other lines."""
    found = _COUNTED.findall(line)
    return {s: int(n) for s, n in found} if line and "".join(map("".join, found)) == line else None


def plain_words(text: str, layout: Layout = PLAIN) -> list[Word]:
    """Splits a text of lines of numbers and symbols into words; empty lines are skipped, as in the reference
    implementation.

    The composition in the first line need not agree with the sites.

    Raises:
        CrystalTextError: a line is missing, or has another number of words.
    """
    lines = [(i, line) for i, line in enumerate(text.split("\n"), start=1) if line]
    if layout.block is not None:
        number, line = lines.pop(0) if lines else (1, "")
        if composition_of(line) is None:
            raise CrystalTextError(number, line, "expected a composition")
    if len(lines) < 2:
        raise CrystalTextError(len(lines) + 1, "", "the text ends before the lattice does")
    words = [word for number, line in lines[:2] for word in _numbers(number, line)]
    for place, (number, line) in enumerate(lines[2:]):
        words += _numbers(number, line) if place % 2 else [Word(line, number, line)]
    if len(lines) == 2:
        raise CrystalTextError(lines[-1][0] + 1, "", "the text ends before the first atom")
    if len(lines) % 2:
        raise CrystalTextError(lines[-1][0] + 1, "", f"no coordinates follow the last {lines[-1][1]}")
    return words


def cif_words(text: str) -> list[Word]:
    """Splits a CIF in the syntax above into words; its name need not agree with its sites.

    Raises:
        CrystalTextError: a line is missing or different.
    """
    lines = [(i, line) for i, line in enumerate(text.split("\n"), start=1) if line]
    words: list[Word] = []
    for place, key in enumerate((_BLOCK, *_KEYS, *_LOOP)):
        if place >= len(lines):
            raise CrystalTextError(len(lines) + 1, "", f"the text ends before {key}")
        number, line = lines[place]
        if key == _BLOCK:
            if composition_of(line.removeprefix(key)) is None or not line.startswith(key):
                raise CrystalTextError(number, line, f"expected {key} and a composition")
            continue
        found, _, value = line.partition(" ") if key in _KEYS else (line, "", "")
        if found != key:
            raise CrystalTextError(number, line, f"expected {key}")
        if key in _KEYS:
            words.append(Word(value, number, line))
    for number, line in lines[len(_KEYS) + len(_LOOP) + 1 :]:
        symbol, _, rest = line.partition(" ")
        words += [Word(symbol, number, line), *(word._replace(text=line) for word in _numbers(number, rest))]
    if len(words) == LATTICE_WORDS:
        raise CrystalTextError(lines[-1][0] + 1, "", "the text ends before the first atom")
    return words


def _numbers(number: int, line: str) -> list[Word]:
    words = line.split(" ")
    if len(words) != 3:
        raise CrystalTextError(number, line, f"expected three numbers, found {len(words)}")
    return [Word(word, number, line) for word in words]
