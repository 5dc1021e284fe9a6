"""What is asked for: from flags or from a CSV file, each request to be answered by several samples.

A request is a mapping. What has the name of a condition stands in the prompt and is a wish; what has one of `LIMITS` is
kept to, beside what the whole job keeps to.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crystal_jax.errors import UserError
from crystal_jax.text.prompts import CONDITIONS

Asked = Mapping[str, Any]

# What a request may be kept to, by the names of `Rules` in sample/rules.py and of the flags.
LIMITS = ("elements", "without", "min_atoms", "max_atoms", "constraints")
_INTEGERS = {"spacegroup.number", "min_atoms", "max_atoms"}
_TEXTS = {"pretty_formula"}
_LISTS = {"elements", "without", "constraints"}


def read_requests(path: Path) -> list[Asked]:
    """The request of each line of a CSV file.

    Its columns are those of the CDVAE data files: pretty_formula, formation_energy_per_atom (eV/atom), band_gap (eV),
    e_above_hull (eV/atom), spacegroup.number; and `LIMITS`, of which some are lists, written as in "Li Fe P O" or as in
    "['Fe', 'O']". An empty cell asks for nothing; other columns are passed over.

    Raises:
        UserError: no file, none of these columns, no lines, or a number that is none, by its line.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            named = [name for name in reader.fieldnames or () if name in (*CONDITIONS, *LIMITS)]
            lines = [(reader.line_num, line) for line in reader]
    except OSError as error:
        raise UserError(f"--requests={path} cannot be read: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"--requests={path} is not a CSV file: {error}") from error
    if not named:
        raise UserError(f"--requests={path} has none of the columns {', '.join((*CONDITIONS, *LIMITS))}")
    if not lines:
        raise UserError(f"--requests={path} has no lines but its header")
    return [
        {name: _value(path, number, name, line[name]) for name in named if (line[name] or "").strip()}
        for number, line in lines
    ]


def conditions_of(asked: Asked) -> dict[str, Any]:
    """What a request says in its prompt."""
    return {name: value for name, value in asked.items() if name not in LIMITS}


def _value(path: Path, line: int, name: str, text: str) -> str | float | int | list[str]:
    if name in _TEXTS:
        return text.strip()
    if name in _LISTS:
        return re.findall(r"\w+", text)
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if number != number or (name in _INTEGERS and number != round(number)):
        raise UserError(f"--requests={path}, line {line}: {name} is {text!r}, which is not a number of its kind")
    return round(number) if name in _INTEGERS else number


def check_requests(asked: Sequence[Asked]) -> None:
    """Raises UserError where a space group is none of the 230."""
    for one in asked:
        group = one.get("spacegroup.number", 1)
        if not 1 <= int(group) <= 230:
            raise UserError(f"there is no space group {group}: their numbers are 1 to 230")
