"""What stands between the numbers of a crystal's text, and how they are found again.

A text is a row of words: three lengths, three angles, then an element and three coordinates for each atom. Formats
differ in what separates them:

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

A label is the element alone, not numbered. A composition may stand before all of it, as a CIF has one in its first line
(`composition_line`).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from pymatgen.core import Element

LATTICE_WORDS, ATOM_WORDS = 6, 4


class CrystalTextError(ValueError):
    """A text that is no crystal: which line (from 1), what stands there, and what is wrong with it."""

    def __init__(self, line: int, text: str, problem: str):
        super().__init__(f"line {line}: {problem}: {text!r}")
        self.line, self.text, self.problem = line, text, problem


class Word(NamedTuple):
    """A word of a text, and the line that it stands in, with its number from 1."""

    value: str
    line: int
    text: str


class Layout(NamedTuple):
    """What stands before each word.

    Attributes:
        lattice: Before the six numbers of the lattice.
        first, later: Before the element of the first atom, and of the others.
        coordinates: Before x, y, z.
        block: What a first line has before the composition; None where there is no such line.
    """

    lattice: tuple[str, str, str, str, str, str]
    first: str
    later: str
    coordinates: tuple[str, str, str]
    block: str | None

    def separator(self, place: int) -> str:
        """Before the word at this place of a crystal, from 0."""
        if place < LATTICE_WORDS:
            return self.lattice[place]
        atom, part = divmod(place - LATTICE_WORDS, ATOM_WORDS)
        return self.coordinates[part - 1] if part else self.later if atom else self.first

    def join(self, words: Iterable[str]) -> str:
        """The text of these words, without a name."""
        return "".join(self.separator(place) + word for place, word in enumerate(words))

    def first_line(self, symbols: Iterable[str]) -> str:
        """The line before the lattice, if there is one."""
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

MASK = "[MASK]"  # stands for an element that an infilling asks for
_COUNTED = re.compile(rf"([A-Z][a-z]?|{re.escape(MASK)})([1-9][0-9]*)")
_ELECTRONEGATIVITY = {element.symbol: element.data.get("X") or math.inf for element in Element}
_ELECTRONEGATIVITY[MASK] = 0.0  # first, so that its place does not give it away


def composition_line(symbols: Iterable[str]) -> str:
    """Each element with its number of atoms in the cell, Na4Cl4: in the order of electronegativity, as in a formula."""
    counts = Counter(symbols)
    return "".join(f"{symbol}{counts[symbol]}" for symbol in in_order(counts))


def in_order(symbols: Iterable[str]) -> tuple[str, ...]:
    """Elements from the least electronegative one on."""
    return tuple(sorted(symbols, key=lambda symbol: (_ELECTRONEGATIVITY[symbol], symbol)))


def composition_of(line: str) -> dict[str, int] | None:
    """The numbers of atoms in a `composition_line`; None for other lines."""
    found = _COUNTED.findall(line)
    return {s: int(n) for s, n in found} if line and "".join(map("".join, found)) == line else None


def plain_words(text: str, layout: Layout = PLAIN) -> list[Word]:
    """The words of a text of lines of numbers and symbols; empty lines are passed over, as the reference does.

    A composition in a first line need not agree with the sites.

    Raises:
        CrystalTextError: lines are missing, or have another number of words.
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
    """The words of a CIF that is written as above; its name need not agree with its sites.

    Raises:
        CrystalTextError: a line is missing or another one.
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
