"""Reads and writes CSV tables strictly: every row has as many cells as the header, and text stays unchanged.

pandas guesses: a row that is too long shifts the columns, and a crystal named NaN becomes a missing value. Here the
former is an error, and only an empty cell is missing.

Spreadsheets execute a cell that begins with `=`, `+`, `-` or `@`. Such texts are written with an apostrophe in front,
which the reader removes; numbers are written unchanged.
"""

from __future__ import annotations

import csv
import dataclasses
import gzip
import io
import re
import stat
import sys
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crystal_jax.errors import UserError
from crystal_jax.storage.files import write_text

if TYPE_CHECKING:
    import pandas as pd

MAX_BYTES = 2**32  # size limit of a file, decompressed

_RUN = re.compile(r"'*[=+\-@\t\r]")  # start of a text that spreadsheets execute, guarded or not
_BOOLEANS = {"True": True, "true": True, "False": False, "false": False}


@dataclasses.dataclass(frozen=True)
class Table:
    """The cells of a CSV table as text: each row has one cell for each column."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def column(self, name: str) -> list[str]:
        """Returns the cells of one column.

        Raises:
            KeyError: the table has no such column.
        """
        if name not in self.columns:
            raise KeyError(name)
        place = self.columns.index(name)
        return [row[place] for row in self.rows]

    def records(self) -> list[dict[str, str]]:
        """Returns each row as a mapping from column to cell."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


def check_is_file(path: Path) -> None:
    """Checks that a path is a regular file, because reading a pipe or a device might never end.

    Raises:
        UserError: it is not.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise UserError(f"{path} cannot be read ({error}); give another path") from error
    if not stat.S_ISREG(mode):
        raise UserError(f"{path} is {'a folder' if stat.S_ISDIR(mode) else 'a pipe, a socket or a device'}, not a file")


def read_bytes(path: Path, *, limit: int = MAX_BYTES) -> bytes:
    """Reads a regular file, and decompresses it if its name ends in `.gz`.

    Raises:
        UserError: the file is missing, not regular, damaged, or has more bytes than `limit`.
    """
    check_is_file(path)
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
            content = file.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}); copy or download it again") from error
    if len(content) > limit:
        raise UserError(f"{path} has more than {limit:,} bytes")
    return content


def read_rows(path: Path) -> Table:
    """Reads a CSV table (`.csv` or `.csv.gz`); see `parse_rows`.

    Raises:
        UserError: the file cannot be read, or is not a table.
    """
    return parse_rows(read_bytes(path), name=str(path))


def parse_rows(content: bytes, *, name: str) -> Table:
    """Parses the bytes of a CSV table: UTF-8 with or without a byte order mark, and one header without blank names.

    Blank lines are skipped. The index that pandas writes, a first column without a name, is dropped.

    Args:
        content: the table, not compressed.
        name: name of the table in error messages.

    Raises:
        UserError: the bytes are not a CSV table, or a row has more or fewer cells than the header has columns.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is no CSV table: it is not UTF-8 text ({error.reason}); save it as UTF-8") from error
    if "\0" in text:
        raise UserError(f"{name} is no CSV table: it holds NUL bytes; save it as UTF-8 CSV")
    csv.field_size_limit(sys.maxsize)  # the default of 128 kB rejects the CIFs of large cells
    try:
        lines = [line for line in csv.reader(io.StringIO(text, newline=""), strict=True) if line]
    except csv.Error as error:
        raise UserError(f"{name} is no CSV table ({error}); save it as UTF-8 CSV") from error
    if not lines:
        raise UserError(f"{name}: the file is empty; it needs a header line that names the columns")
    header, *rows = lines
    _check_header(header, name)
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            more = "more" if len(row) > len(header) else "fewer"
            raise UserError(
                f"{name}: row {number} has {more} cells than the header has columns; quote cells that hold commas"
            )
    first = 1 if header[0] == "" else 0
    return Table(tuple(header[first:]), tuple(tuple(map(_unguarded, row[first:])) for row in rows))


def read_frame(path: Path, dtypes: Mapping[str, str]) -> pd.DataFrame:
    """Reads a CSV table as a frame whose columns have the given types; an empty cell is a missing value.

    Args:
        path: `.csv` or `.csv.gz`.
        dtypes: pandas' type name of each required column: str, bool, boolean, Int64, float64. Further columns are text.

    Raises:
        UserError: the file is not a table, a column is missing, or a cell is not of its column's type.
    """
    import pandas as pd  # late: commands that only define flags need no pandas

    table = read_rows(path)
    if missing := [name for name in dtypes if name not in table.columns]:
        raise UserError(f"{path} has no column {missing[0]!r}; the columns are: {', '.join(table.columns)}")
    series = {name: _series(table.column(name), dtypes.get(name, "str"), f"{path}: {name}") for name in table.columns}
    return pd.DataFrame(series, columns=list(table.columns))


def to_csv(frame: pd.DataFrame) -> str:
    """Returns a frame as CSV text without its index; missing values are empty cells.

    `read_frame` with the frame's types restores it, except that an empty text becomes a missing value.
    """
    import pandas as pd  # late, as above

    rows = (["" if pd.isna(cell) else cell for cell in row] for row in frame.itertuples(index=False, name=None))
    return to_text(list(frame.columns), rows)


def to_text(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Returns rows of texts and numbers as CSV text under a header."""
    lines = _Lines()
    # Python 3.11 quotes only line ends that are in the terminator: with "\n", a lone CR in a cell would end a row.
    table = csv.writer(lines, lineterminator="\r\n")
    table.writerow(columns)
    table.writerows([_guarded(cell) for cell in row] for row in rows)
    return "".join(lines)


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes rows of texts and numbers under a header, atomically.

    Raises:
        UserError: the file cannot be written.
    """
    write_text(path, to_text(columns, rows))


class _Lines(list[str]):
    """Collects the rows of a CSV writer, each ended by a line feed."""

    def write(self, row: str) -> None:
        self.append(row.removesuffix("\r\n") + "\n")


def _check_header(header: Sequence[str], name: str) -> None:
    if "" in header[1:]:
        raise UserError(f"{name}: column {header.index('', 1) + 1} has no name in the header; name it or remove it")
    if twice := next((column for column in header if header.count(column) > 1), None):
        raise UserError(f"{name}: the header names the column {twice!r} twice; rename one")


def _guarded(cell: Any) -> Any:
    if not isinstance(cell, str) or not _RUN.match(cell):
        return cell
    return cell if _is_number(cell) else "'" + cell


def _unguarded(cell: str) -> str:
    return cell[1:] if cell[:1] == "'" and _RUN.match(cell) else cell


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _series(cells: Sequence[str], dtype: str, where: str) -> pd.Series:
    import pandas as pd  # late, as above

    values = [_value(cell, dtype, f"{where}, row {number}") for number, cell in enumerate(cells, start=1)]
    series: pd.Series = pd.Series(values, dtype="object")
    return series.astype(pd.api.types.pandas_dtype(dtype))


def _value(cell: str, dtype: str, where: str) -> Any:
    """Returns a cell's value; None, a missing value for pandas, for an empty cell."""
    if cell == "" and dtype != "bool":
        return float("nan") if dtype == "float64" else None
    kind = dtype.lower()
    try:
        if kind in ("bool", "boolean"):
            return _BOOLEANS[cell]
        if kind == "int64":
            return int(cell)
        if kind == "float64":
            return float(cell)
    except (KeyError, ValueError):
        raise UserError(f"{where}: {cell!r} is not of the type {dtype}") from None
    return cell
