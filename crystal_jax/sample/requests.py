"""What is asked for: conditions from flags or from a CSV file, each to be answered by several samples."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from crystal_jax.errors import UserError
from crystal_jax.text.prompts import CONDITIONS, Conditions

_INTEGERS = {"spacegroup.number"}
_TEXTS = {"pretty_formula"}


def read_conditions(path: Path) -> list[Conditions]:
    """The conditions of each line of a CSV file.

    Its columns are those of the CDVAE data files: pretty_formula, formation_energy_per_atom (eV/atom), band_gap (eV),
    e_above_hull (eV/atom), spacegroup.number. An empty cell is no condition; other columns are passed over.

    Raises:
        UserError: no file, none of these columns, no lines, or a number that is none, by its line.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            named = [name for name in reader.fieldnames or () if name in CONDITIONS]
            lines = [(reader.line_num, line) for line in reader]
    except OSError as error:
        raise UserError(f"--requests={path} cannot be read: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"--requests={path} is not a CSV file: {error}") from error
    if not named:
        raise UserError(f"--requests={path} has none of the columns {', '.join(CONDITIONS)}")
    if not lines:
        raise UserError(f"--requests={path} has no lines but its header")
    return [
        {name: _value(path, number, name, line[name]) for name in named if (line[name] or "").strip()}
        for number, line in lines
    ]


def _value(path: Path, line: int, name: str, text: str) -> str | float | int:
    if name in _TEXTS:
        return text.strip()
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if number != number or (name in _INTEGERS and number != round(number)):
        raise UserError(f"--requests={path}, line {line}: {name} is {text!r}, which is not a number of its kind")
    return round(number) if name in _INTEGERS else number


def check_conditions(asked: Sequence[Conditions]) -> None:
    """Raises UserError where a space group is none of the 230."""
    for conditions in asked:
        group = conditions.get("spacegroup.number", 1)
        if not 1 <= int(group) <= 230:
            raise UserError(f"there is no space group {group}: their numbers are 1 to 230")
