"""Reads CSV tables of crystals: one CIF per row, with optional columns of properties."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

from crystal_jax import structures
from crystal_jax.errors import UserError
from crystal_jax.structures.formats.csv_table import CIF_COLUMNS, entries_of_table
from crystal_jax.tables import parse_rows
from tfds_mp20.crystals import Entry

_SPACEGROUP = ("spacegroup", "spacegroup.number")
# Stored under their own names, recomputed from the CIF, or (unnamed) the index that pandas writes.
_KNOWN = {
    *CIF_COLUMNS,
    *_SPACEGROUP,
    *("material_id", "source", "formation_energy_per_atom", "band_gap", "e_above_hull"),
    *("pretty_formula", "formula", "elements", ""),
}


def find(folder: Path, split: str) -> Path:
    """Finds a split's table in a folder, compressed or not.

    Raises:
        UserError: there is none.
    """
    for suffix in (".csv", ".csv.gz"):
        if (path := folder / f"{split}{suffix}").is_file():
            return path
    raise UserError(f"{folder} has no {split}.csv or {split}.csv.gz; put train, val and test there")


def git_blob_id(content: bytes) -> str:
    """Returns git's id of these bytes; `git hash-object FILE` prints the same."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def parse_table(content: bytes, *, name: str, source: str) -> list[Entry]:
    """Returns the rows of a CSV table; CIFs are not parsed yet.

    Args:
        content: the table; UTF-8.
        name: name of the table in error messages.
        source: source of entries without a `source` column.

    Raises:
        UserError: the content is not a table, has no rows or no CIF column, or a property is not a number.
    """
    table = parse_rows(content, name=name)
    crystals = entries_of_table(table, name=name)
    return [
        _entry(row, crystal, source=source, number=number)
        for number, (row, crystal) in enumerate(zip(table.records(), crystals, strict=True), start=1)
    ]


def _entry(row: dict[str, str], crystal: structures.Entry, *, source: str, number: int) -> Entry:
    def prop(column: str) -> float:
        return _number(row.get(column), column=column, where=crystal.where)

    spacegroup = next((column for column in _SPACEGROUP if row.get(column)), None)
    return Entry(
        cif=crystal.cif,
        where=crystal.where,
        stated=crystal.formula,
        fault=crystal.fault,
        material_id=row.get("material_id") or str(number),
        source=row.get("source") or source,
        formation_energy_per_atom=prop("formation_energy_per_atom"),
        band_gap=prop("band_gap"),
        e_above_hull=prop("e_above_hull"),
        spacegroup=int(prop(spacegroup)) if spacegroup else -1,
        extra={column: value for column, cell in row.items() if (value := _extra(column, cell)) is not None},
    )


def _number(cell: str | None, *, column: str, where: str) -> float:
    """Converts a cell to a float, exactly; NaN if the cell is empty or absent."""
    try:
        return float(cell) if cell else math.nan
    except ValueError:
        raise UserError(f"{where}: {column} is {cell!r}, which is no number; correct it or leave it empty") from None


def _extra(column: str, cell: str) -> float | None:
    """Returns the number in a column that this module does not know; None if it is not a number."""
    if column in _KNOWN:
        return None
    try:
        number = float(cell)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
