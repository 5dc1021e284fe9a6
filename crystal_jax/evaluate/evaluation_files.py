"""Reads what an evaluation wrote, `metrics.json` and `structures.csv`, and checks the types of what it reads."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from crystal_jax.errors import UserError
from crystal_jax.evaluate import structures
from crystal_jax.json_files import JsonObject, read_object

METRICS, STRUCTURES = "metrics.json", "structures.csv"
_ADVICE = "give the --output of 'crystal-jax evaluate', or evaluate again"


def read_metrics(folder: Path) -> JsonObject:
    """Reads `metrics.json` of an evaluation's folder.

    Raises:
        UserError: it is missing or damaged.
    """
    if not (folder / METRICS).is_file():
        raise UserError(f"{folder} has no {METRICS}; {_ADVICE}")
    return read_object(folder / METRICS, advice=_ADVICE)


def read_structures(folder: Path) -> pd.DataFrame:
    """Reads `structures.csv` of an evaluation's folder; a crystal called NaN or NA keeps its name.

    Raises:
        UserError: it is missing or damaged, or lacks a column.
    """
    path = folder / STRUCTURES
    try:
        rows = pd.read_csv(path, dtype=structures.COLUMNS, keep_default_na=False, na_values=[""])
    except FileNotFoundError:
        raise UserError(f"{folder} has no {STRUCTURES}; {_ADVICE}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {' '.join(str(error).split())}; {_ADVICE}") from error
    if missing := [name for name in structures.COLUMNS if name not in rows]:
        raise UserError(f"{path} lacks the column {missing[0]}; {_ADVICE}")
    return rows
