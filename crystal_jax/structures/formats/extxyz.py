"""Reads extended XYZ: checks the lines of each frame, then parses them with ASE."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import Any

from pymatgen.core import Element

from crystal_jax.errors import UserError
from crystal_jax.structures.build import entry_of, formula_of
from crystal_jax.structures.entry import Entry
from crystal_jax.structures.formats.cif import one_line
from crystal_jax.structures.lattice import matrix_fault
from crystal_jax.suppress_warnings import quiet

_PROPERTIES = re.compile(r"""(?:^|\s)Properties\s*=\s*["']?([^"'\s]+)""")
_DEFAULT = "species:S:1:pos:R:3"
_MAX_COLUMNS = 1000  # columns of an atom's line
_NAMES = ("name", "material_id", "mat_id")


@quiet()
def read_extxyz(text: str, *, name: str) -> list[Entry]:
    """Returns the frames of a file; a frame that is not periodic in three dimensions has no CIF.

    Entries have the names in the frames' comments, or "".

    Args:
        text: content of the file.
        name: name of the file, for error messages.

    Raises:
        UserError: the file is not extended XYZ.
    """
    from ase.io import read  # imported here, because only this case needs ASE

    try:
        lines = _checked(text.splitlines())
        frames: Any = read(io.StringIO("\n".join(lines) + "\n"), index=":", format="extxyz")
    except Exception as error:  # ASE's reader raises many types of errors
        raise UserError(f"{name}: not a readable extended XYZ file: {one_line(error)}") from error
    if not frames:
        raise UserError(f"{name}: not a readable extended XYZ file: it has no frames")
    return [_entry(frame) for frame in frames]


def _entry(frame: Any) -> Entry:
    name = next((str(frame.info[key]) for key in _NAMES if key in frame.info), "")
    symbols = list(frame.get_chemical_symbols())
    fault = matrix_fault(frame.cell.array) if frame.pbc.all() else "no cell: the frame is not periodic"
    if fault:
        elements = [Element(symbol) for symbol in symbols if Element.is_valid_symbol(symbol)]
        return Entry(name, "", formula=formula_of(elements), fault=fault)
    return entry_of(frame.cell.array, symbols, frame.get_scaled_positions(wrap=False), name=name)


def _checked(lines: list[str]) -> list[str]:
    """Returns the lines with element symbols that ASE knows: deuterium becomes hydrogen.

    Raises:
        ValueError: a frame states more lines than there are, or an atom is not an element.
    """
    return [line for first, frame in _frames(lines) for line in _of_elements(frame, first)]


def _frames(lines: list[str]) -> Iterator[tuple[int, list[str]]]:
    """Yields the first line number, from 1, and the lines of each frame."""
    begin = 0
    while begin < len(lines) and lines[begin].strip():
        try:
            atoms = int(lines[begin])
        except ValueError:
            raise ValueError(f"line {begin + 1} is {lines[begin][:40]!r}, not a number of atoms") from None
        end = begin + 2 + atoms
        if atoms < 0 or end > len(lines):
            raise ValueError(f"line {begin + 1} claims {atoms} atoms, and the file has {len(lines)} lines")
        while end < len(lines) and lines[end].lstrip().startswith("VEC"):
            end += 1
        yield begin + 1, lines[begin:end]
        begin = end
    if rest := next((i for i in range(begin, len(lines)) if lines[i].strip()), None):
        raise ValueError(f"line {rest + 1} follows a blank line, after which no frame is read")


def _of_elements(frame: list[str], first: int) -> list[str]:
    found = _PROPERTIES.search(frame[1])
    parts = (found[1] if found else _DEFAULT).split(":")
    widths = [int(width) for width in parts[2::3]]
    if len(parts) % 3 or not all(0 < width <= _MAX_COLUMNS for width in widths) or sum(widths) > _MAX_COLUMNS:
        raise ValueError(f"line {first + 1} has the properties {':'.join(parts)[:60]!r}")
    if "species" not in parts[0::3]:
        return frame
    column = sum(widths[: parts[0::3].index("species")])
    atoms = int(frame[0])
    changed = []
    for number, line in enumerate(frame[2 : 2 + atoms], start=first + 2):
        words = line.split()
        if len(words) < sum(widths):
            raise ValueError(f"line {number} has {len(words)} columns, not {sum(widths)}")
        symbol = words[column].capitalize()
        if not Element.is_valid_symbol(symbol):
            raise ValueError(f"line {number} has the unknown element {words[column][:20]!r}")
        words[column] = Element.from_Z(Element(symbol).Z).symbol
        changed.append(" ".join(words))
    return [*frame[:2], *changed, *frame[2 + atoms :]]
