"""Sampling requests, from flags, Python arguments, or a CSV file with one request per line.

A request is a mapping. Its keys are of two kinds:

- hints (`CONDITIONS`): properties in the prompt. The model follows them more or less; they are not enforced.
- limits (`CONSTRAINT_COLUMNS`): elements, chemical system, numbers of atoms and elements, constraints. They are
  enforced for every sample, in addition to those of the whole run.

A formula is both: it is in the prompt, and the composition is a multiple of it unless the run has `hints_only`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crystal_jax import arguments
from crystal_jax.errors import UserError
from crystal_jax.old_names import REQUEST_COLUMNS, present_columns
from crystal_jax.tables import read_rows
from crystal_jax.text.conditions import parse_chemical_system, parse_elements, parse_formula, parse_spacegroup
from crystal_jax.text.prompts import CONDITIONS

if TYPE_CHECKING:
    from crystal_jax.config import TaskConfig

Asked = Mapping[str, Any]

FORMULA, SPACEGROUP = "pretty_formula", "spacegroup.number"
# Keys of a request that are enforced for every sample; they are named as the flags.
CONSTRAINT_COLUMNS = (
    "chemical_system",
    "elements",
    "exclude_elements",
    "min_elements",
    "max_elements",
    "min_atoms",
    "max_atoms",
    "constraints",
)
NAME = "name"  # the request's name in the outputs
_NAME_COLUMNS = (NAME, "material_id")


def _count(value: Any) -> int:
    number = _number(value)
    if number != round(number) or number < 1:
        raise ValueError(f"{value!r} is not a whole number from 1 up")
    return round(number)


def _number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not a finite number")
    return number


def _words(value: Any) -> list[str]:
    """Returns the words of a list, or of a cell that holds a list: "Li Fe P O" or "['Fe', 'O']"."""
    return re.findall(r"[\w.+-]+", value) if isinstance(value, str) else arguments.words("the list", value)


_PARSERS: Mapping[str, Callable[[Any], Any]] = {
    FORMULA: lambda value: parse_formula(str(value)),
    SPACEGROUP: parse_spacegroup,
    "formation_energy_per_atom": _number,
    "band_gap": _number,
    "e_above_hull": _number,
    "chemical_system": lambda value: parse_chemical_system(value if isinstance(value, str) else _words(value)),
    "elements": lambda value: parse_elements(_words(value)),
    "exclude_elements": lambda value: parse_elements(_words(value), name="exclude_elements"),
    "min_elements": _count,
    "max_elements": _count,
    "min_atoms": _count,
    "max_atoms": _count,
    "constraints": lambda value: [word for word in _words(value) if word != "none"],
    NAME: str,
}


def parse_request(request: Asked) -> Asked:
    """Returns a request with its values checked and in canonical form; values that are None are left out.

    Raises:
        UserError: a value is no formula, space group, element or number; the message names its key.
    """
    parsed = {}
    for key, value in request.items():
        if value is None:
            continue
        try:
            parsed[key] = _PARSERS[key](value) if key in _PARSERS else value
        except (ValueError, UserError) as error:
            says_it = key in (FORMULA, SPACEGROUP) or str(error).startswith(key)
            raise UserError(str(error) if says_it else f"{key}: {error}") from None
    return parsed


def read_requests(path: Path) -> list[Asked]:
    """Reads the requests in a CSV file, one per line.

    The columns are those of the CDVAE data files: pretty_formula, formation_energy_per_atom (eV/atom), band_gap (eV),
    e_above_hull (eV/atom), spacegroup.number; and `CONSTRAINT_COLUMNS`, of which some hold lists, written as "Li Fe P
    O" or "['Fe', 'O']". A column `name` or `material_id` names the requests. An empty cell adds nothing to the request;
    other columns are ignored.

    Raises:
        UserError: there is no such file, it has none of these columns or no lines, or a value cannot be read; the
            message names the row.
    """
    table = read_rows(path)
    present = present_columns(table.columns, REQUEST_COLUMNS)
    known = {column: present.get(column, column) for column in table.columns}
    known = {column: name for column, name in known.items() if name in (*CONDITIONS, *CONSTRAINT_COLUMNS)}
    if not known:
        raise UserError(f"--requests={path} has none of the columns {', '.join((*CONDITIONS, *CONSTRAINT_COLUMNS))}")
    if not table.rows:
        raise UserError(f"--requests={path} has no lines but its header")
    own_name = next((column for column in _NAME_COLUMNS if column in table.columns), None)
    requests = []
    for number, row in enumerate(table.records(), start=1):
        cells = {name: row[column].strip() for column, name in known.items() if row[column].strip()}
        try:
            requests.append(parse_request(cells | ({NAME: row[own_name]} if own_name else {})))
        except UserError as error:
            raise UserError(f"--requests={path}, row {number}: {error}") from None
    return requests


def parse_requests(conditions: Asked | Sequence[Asked]) -> list[Asked]:
    """Returns one request, or several, as a list of checked requests; an empty sequence becomes one empty request.

    Raises:
        UserError: see `parse_request`; if there are several requests, the message gives the number of the bad one.
    """
    if isinstance(conditions, Mapping):
        return [parse_request(conditions)]
    requests = []
    for number, request in enumerate(conditions, start=1):
        if not isinstance(request, Mapping):
            raise UserError(f"request {number} is {request!r}; a request is a mapping, such as {{'band_gap': 1.5}}")
        try:
            requests.append(parse_request(request))
        except UserError as error:
            raise UserError(f"request {number}: {error}" if len(conditions) > 1 else str(error)) from None
    return requests or [{}]


def check_trained_on(names: Iterable[str], task: TaskConfig, *, checkpoint: str | Path) -> None:
    """Checks that a model was trained with conditions in its prompts, if some are asked for.

    Raises:
        UserError: it was not; the message has the conditions' names.
    """
    if (asked := ", ".join(names)) and not task.conditions:
        raise UserError(f"{checkpoint} was trained without conditions, so it cannot be asked for {asked}")


def conditions_of(request: Asked) -> dict[str, Any]:
    """Returns the conditions of a request that its prompt states, the formula first, as in training."""
    stated = {key: value for key, value in request.items() if key not in CONSTRAINT_COLUMNS and key != NAME}
    return {key: stated[key] for key in sorted(stated, key=lambda key: key != FORMULA)}
