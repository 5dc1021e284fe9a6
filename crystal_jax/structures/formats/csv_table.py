"""Reads a CSV table of crystals: one per row, as CIF text or as the dictionary of a pymatgen structure."""

from __future__ import annotations

from collections.abc import Sequence

from crystal_jax.errors import UserError
from crystal_jax.structures.entry import Entry
from crystal_jax.structures.formats.cif import blocks
from crystal_jax.structures.formats.plain_json import entry_of_text
from crystal_jax.tables import Table

CIF_COLUMNS = ("cif", "cif_str")  # both are in use in published files
NAME_COLUMNS = ("name", "material_id")
FORMULA_COLUMNS = ("formula", "pretty_formula")
_LONGEST_NUMBER = 18  # characters


def entries_of_table(table: Table, *, name: str) -> list[Entry]:
    """Returns an entry for each row, in the order of the rows.

    Columns: `cif` or `cif_str`; `name` or `material_id` if all values are present and unique, otherwise rows are
    numbered; `formula` or `pretty_formula`; `model_name`; `gen_str` (the prompt); `request_number`, `request_name` and
    `requested`, as 'crystal-jax sample' writes them.

    Args:
        table: table of text cells.
        name: name of the file, for error messages.

    Raises:
        UserError: there is no column of crystals, there are no rows, or a request number is not a number.
    """
    column = next((each for each in CIF_COLUMNS if each in table.columns), None)
    if column is None:
        raise UserError(f"{name}: no column 'cif' (or 'cif_str'); the columns are: {', '.join(table.columns)}")
    if not table.rows:
        raise UserError(f"{name}: the file has a header but no rows")
    number = len(table.rows)
    names = next((found for each in NAME_COLUMNS if (found := _distinct(table, each))), None)
    formulas = next((table.column(each) for each in FORMULA_COLUMNS if each in table.columns), [""] * number)
    models, prompts, requests = (_cells(table, each) for each in ("model_name", "gen_str", "request_number"))
    request_names = _cells(table, "request_name")
    requested = table.column("requested") if "requested" in table.columns else [None] * number
    return [
        _entry(
            names[i] if names else f"{i:06d}",
            cif,
            model=models[i],
            formula=formulas[i],
            prompt=prompts[i],
            request=_request(requests[i], f"{name}, row {i + 1}"),
            request_name=request_names[i],
            requested=requested[i],
            where=f"{name}, row {i + 1}",
        )
        for i, cif in enumerate(table.column(column))
    ]


def _entry(name: str, cif: str, **facts: object) -> Entry:
    fault = ""
    if cif.lstrip().startswith("{"):
        found = entry_of_text(cif, name=name)
        cif, fault = found.cif, found.fault
    if len(crystals := blocks(cif)) == 1:
        cif = crystals[0][1]  # without blocks of a publication
    return Entry(name, cif, fault=fault, **facts)  # type: ignore[arg-type]


def _distinct(table: Table, column: str) -> Sequence[str] | None:
    """Returns the cells of a column if they are present and unique, otherwise None."""
    found = table.column(column) if column in table.columns else []
    return found if found and all(found) and len(set(found)) == len(found) else None


def _cells(table: Table, column: str) -> list[str]:
    return table.column(column) if column in table.columns else [""] * len(table.rows)


def _request(cell: str, where: str) -> int | None:
    if not cell.strip():
        return None
    if not cell.strip().isdecimal() or len(cell) > _LONGEST_NUMBER:
        raise UserError(f"{where}: request_number is {cell!r}, which is no whole number")
    return int(cell)
