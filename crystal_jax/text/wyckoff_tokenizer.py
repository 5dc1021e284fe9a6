"""One token per field of a crystal's text by its symmetry: element, number, Wyckoff position."""

from __future__ import annotations

import re
from collections.abc import Sequence

from crystal_jax.errors import RequestError
from crystal_jax.symmetry.positions import position_symbols
from crystal_jax.text.crystal_text import ELEMENTS
from crystal_jax.text.layout import MASK
from crystal_jax.text.prompts import PHRASES

_PRINTABLE = "\n" + "".join(map(chr, range(32, 127)))
_LENGTHS = tuple(f"{i / 10:.1f}" for i in range(10, 1000))  # Å
_INTEGERS = tuple(map(str, range(1, 231)))  # space groups, angles in degrees
_COUNTS = tuple(f"count {i}" for i in range(1, 200))  # atoms of an element in a composition line
_COORDINATES = tuple(f"{i / 100:.2f}" for i in range(100))
FIELDS = (*_LENGTHS, *_INTEGERS, *_COORDINATES, *ELEMENTS, MASK, *position_symbols(), *_COUNTS)

_SYMBOL = "|".join(sorted([*ELEMENTS, re.escape(MASK)], key=len, reverse=True))
_LENGTHS_LINE = r"\d+\.\d(?: \d+\.\d){0,2}"
_ANGLES_LINE = r"\d+(?: \d+){0,2}"
_ORBIT = rf"(?:{_SYMBOL}) \d+[a-zA](?: \d\.\d\d){{0,3}}"
_COMPOSITION = rf"(?:(?:(?:{_SYMBOL})\d+)+\n)?"
_LATTICE = rf"{_LENGTHS_LINE}(?:\n{_ANGLES_LINE})?"
_CRYSTAL = rf"(?P<crystal>(?<![^\n]){_COMPOSITION}\d+\n{_LATTICE}(?:\n{_ORBIT})+(?![^\n]))"
_FIELD = re.compile(rf"{_SYMBOL}|\d+[a-zA](?![a-zA-Z\d])|[\d.]+")
# Alternatives in order: a crystal, a phrase, an element, one character.
_PIECE = re.compile(rf"{_CRYSTAL}|{'|'.join(map(re.escape, PHRASES))}|{_SYMBOL}|(?s:.)")


class WyckoffTokenizer:
    """One token per element, length (1.0 … 99.9 Å), integer (1 … 230), coordinate (0.00 … 0.99), position (1a … 192l).

    Spaces and newlines of a crystal need no tokens: the kind of a token and those before it decide what separates them.
    An integer is a space group or an angle, by its place; numbers of atoms have tokens of their own. Prompts are
    tokenised with one token per fixed phrase, element tokens in formulas, and characters for the rest.
    """

    name = "wyckoff"
    bos_id, eos_id = 0, 1

    def __init__(self) -> None:
        texts = [*PHRASES, *_PRINTABLE]
        self._field_ids = {field: i for i, field in enumerate(FIELDS, start=2)}
        self._text_ids = {piece: i for i, piece in enumerate(texts, start=2 + len(FIELDS))}
        self._text_ids |= {symbol: self._field_ids[symbol] for symbol in (*ELEMENTS, MASK)}
        self._strings = ["", "", *FIELDS, *texts]
        self._fields = range(2, 2 + len(FIELDS))
        self.vocab_size = len(self._strings)

    def encode(self, text: str) -> list[int]:
        """Returns the token ids of a prompt, a crystal, or a prompt followed by its completion."""
        ids: list[int] = []
        for match in _PIECE.finditer(text):
            if match.lastgroup == "crystal":
                ids += map(self._field, _fields_of(match.group()))
            else:
                ids.append(self._lookup(self._text_ids, match.group()))
        return ids

    def decode(self, ids: list[int]) -> str:
        """Returns the text of token ids; BOS and EOS are skipped."""
        text, fields = "", list[str]()
        for token in ids:
            if token in (self.bos_id, self.eos_id):
                continue
            if token in self._fields:
                fields.append(self._strings[token])
            else:
                text += _joined(fields) + self._strings[token]
                fields = []
        return text + _joined(fields)

    def spell(self, separator: str, value: str) -> tuple[int, ...]:
        """Returns the id of a field inside a crystal's text; only a number of atoms has no separator before it."""
        return (self._field(f"count {value}" if not separator and value.isdecimal() else value),)

    def _field(self, field: str) -> int:
        return self._lookup(self._field_ids, field)

    def _lookup(self, ids: dict[str, int], piece: str) -> int:
        if piece not in ids:
            raise RequestError(f"{piece!r} is not in the vocabulary")
        return ids[piece]


def _fields_of(crystal: str) -> list[str]:
    line, _, rest = crystal.partition("\n")
    if line.isdecimal():  # a space group: there is no composition
        return _FIELD.findall(crystal)
    counted = [f"count {field}" if field.isdecimal() else field for field in _FIELD.findall(line)]
    return counted + _FIELD.findall(rest)


# The separator before a field, and what the field is, by what comes before it and by its kind.
_NEXT = {
    ("start", "element"): ("", "counted element"),
    ("counted element", "element"): ("", "counted element"),  # in a formula
    ("counted element", "count"): ("", "count"),
    ("count", "element"): ("", "counted element"),
    ("start", "integer"): ("", "space group"),
    ("count", "integer"): ("\n", "space group"),
    ("space group", "length"): ("\n", "length"),
    ("length", "length"): (" ", "length"),
    ("length", "integer"): ("\n", "angle"),
    ("angle", "integer"): (" ", "angle"),
    ("length", "element"): ("\n", "element"),
    ("angle", "element"): ("\n", "element"),
    ("element", "position"): (" ", "position"),
    ("position", "element"): ("\n", "element"),
    ("position", "coordinate"): (" ", "coordinate"),
    ("coordinate", "coordinate"): (" ", "coordinate"),
    ("coordinate", "element"): ("\n", "element"),
}


def _joined(fields: Sequence[str]) -> str:
    """Returns the text of fields: a crystal, with or without a composition; or elements of a formula."""
    text, place = "", "start"
    for field in fields:
        kind = _kind(field)
        separator, place = _NEXT.get((place, kind), (" ", kind))  # the default: what no crystal has
        text += separator + field.removeprefix("count ")
    return text


def _kind(field: str) -> str:
    if field.startswith("count "):
        return "count"
    if field[0].isdigit() and field[-1].isalpha():
        return "position"
    if not field[0].isdigit():
        return "element"
    return {0: "integer", 1: "length"}.get(len(field.partition(".")[2]), "coordinate")
