"""CSV tables of crystals: one CIF a row, with whatever properties the columns name."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import math
import sys
import zlib
from pathlib import Path

from crystal_jax.errors import UserError
from tfds_mp20.crystals import Entry

_CIF = ("cif", "cif_str")
_SPACEGROUP = ("spacegroup", "spacegroup.number")
# Stored under their own names, recomputed from the CIF, or (unnamed) the index that pandas writes.
_KNOWN = {
    *_CIF,
    *_SPACEGROUP,
    *("material_id", "source", "formation_energy_per_atom", "band_gap", "e_above_hull"),
    *("pretty_formula", "formula", "elements", ""),
}


def find(folder: Path, split: str) -> Path:
    """The split's table in a folder, compressed or not.

    Raises:
        UserError: there is none.
    """
    for suffix in (".csv", ".csv.gz"):
        if (path := folder / f"{split}{suffix}").is_file():
            return path
    raise UserError(f"{folder} has no {split}.csv or {split}.csv.gz; put train, val and test there")


def read_bytes(path: Path) -> bytes:
    """A file's bytes, decompressed if its name ends in .gz.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}); copy or download it again") from error


def git_blob_id(content: bytes) -> str:
    """The id git gives these bytes; `git hash-object FILE` prints the same."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def parse_table(content: bytes, *, name: str, source: str) -> list[Entry]:
    """The rows of a CSV table, CIFs still unparsed.

    Args:
        content: the table; UTF-8.
        name: what messages call it.
        source: the entries' source, unless a `source` column says otherwise.

    Raises:
        UserError: no rows, no CIF column, or a property that is no number.
    """
    csv.field_size_limit(sys.maxsize)  # the default of 128 kB refuses the CIFs of large cells
    try:
        reader = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True, restval="")
        rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{name} is no CSV table ({error}); save it as UTF-8 CSV") from error
    if not rows:
        raise UserError(f"{name} has no rows; it needs a header line with a column 'cif' and a crystal a row")
    columns = reader.fieldnames or []
    cif = next((column for column in _CIF if column in columns), None)
    if cif is None:
        raise UserError(f"{name} has no column 'cif' or 'cif_str', only {', '.join(columns)}; rename the CIF column")
    return [
        _entry(row, cif=row[cif], where=f"{name}, row {number}", source=source, number=number)
        for number, row in enumerate(rows, start=1)
    ]


def _entry(row: dict[str, str], *, cif: str, where: str, source: str, number: int) -> Entry:
    if None in row:
        raise UserError(f"{where} has more cells than the header has columns; quote cells that hold commas")

    def prop(column: str) -> float:
        return _number(row.get(column), column=column, where=where)

    spacegroup = next((column for column in _SPACEGROUP if row.get(column)), None)
    return Entry(
        cif=cif,
        where=where,
        material_id=row.get("material_id") or str(number),
        source=row.get("source") or source,
        formation_energy_per_atom=prop("formation_energy_per_atom"),
        band_gap=prop("band_gap"),
        e_above_hull=prop("e_above_hull"),
        spacegroup=int(prop(spacegroup)) if spacegroup else -1,
        extra={column: value for column, cell in row.items() if (value := _extra(column, cell)) is not None},
    )


def _number(cell: str | None, *, column: str, where: str) -> float:
    """`float` of a cell, exact to the last digit; NaN if it is empty or absent."""
    try:
        return float(cell) if cell else math.nan
    except ValueError:
        raise UserError(f"{where}: {column} is {cell!r}, which is no number; correct it or leave it empty") from None


def _extra(column: str, cell: str) -> float | None:
    """The number in a column this module has no name for; None if there is none."""
    if column in _KNOWN:
        return None
    try:
        number = float(cell)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
