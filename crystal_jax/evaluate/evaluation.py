"""An evaluation on disk: `metrics.json`, `structures.csv`, `candidates.csv` and `candidates/`.

`metrics.json` is written last and states the SHA-256 of the tables. So an evaluation that was stopped halfway, beside
the metrics of an earlier one, is noticed by whoever reads it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from crystal_jax.errors import UserError
from crystal_jax.evaluate.candidates import candidates, write_cifs
from crystal_jax.evaluate.structures import COLUMNS
from crystal_jax.json_files import JsonObject, read_object
from crystal_jax.storage.files import write_text
from crystal_jax.tables import read_bytes, read_frame, read_rows, to_csv

METRICS, STRUCTURES, CANDIDATES = "metrics.json", "structures.csv", "candidates.csv"
_AGAIN = "run 'crystal-jax evaluate' again"
_NEEDED = ("name", "formula", "reduced_formula", "valid", "unique", "spacegroup", "e_above_hull", "failure")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What `crystal-jax evaluate` wrote.

    Attributes:
        metrics: the object in `metrics.json`.
        rows: `structures.csv`; columns that an older version did not write are empty.
    """

    metrics: JsonObject
    rows: pd.DataFrame


def write_evaluation(
    folder: Path, rows: pd.DataFrame, metrics: Mapping[str, Any], cifs: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Writes an evaluation, `metrics.json` last, and returns what that holds.

    Args:
        folder: made if it does not exist.
        rows: one a sample, see `structures.COLUMNS`.
        metrics: the measured values.
        cifs: of the samples by name, relaxed where they were relaxed; None leaves `candidates/` as it is.

    Raises:
        UserError: the folder cannot be written to.
    """
    ranked = candidates(rows)
    tables = {STRUCTURES: to_csv(rows), CANDIDATES: to_csv(ranked)}
    for name, text in tables.items():
        write_text(folder / name, text)
    if cifs is not None:
        write_cifs(ranked, cifs, folder / "candidates")
    digests = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in tables.items()}
    content = {**metrics, "files": digests}
    write_text(folder / METRICS, json.dumps(content, indent=2, allow_nan=False) + "\n")
    return content


def read_evaluation(folder: Path) -> Evaluation:
    """Reads the folder of an evaluation.

    Raises:
        UserError: a file is missing or damaged, or the table is not of the same run as the metrics.
    """
    for name in (METRICS, STRUCTURES):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: no {name}; is this the --output of 'crystal-jax evaluate'?")
    metrics = read_object(folder / METRICS, advice=_AGAIN)
    digests = metrics.content.get("files")  # versions before 0.2 did not write them
    found = hashlib.sha256(read_bytes(folder / STRUCTURES)).hexdigest()
    if digests is not None and (not isinstance(digests, dict) or digests.get(STRUCTURES) != found):
        raise UserError(f"{folder}: {STRUCTURES} is not of the same run as {METRICS}; {_AGAIN}")
    table = read_rows(folder / STRUCTURES)
    if missing := [name for name in _NEEDED if name not in table.columns]:
        raise UserError(f"{folder / STRUCTURES} lacks the column {missing[0]}; {_AGAIN}")
    types = {name: kind for name, kind in COLUMNS.items() if name in table.columns}
    rows = read_frame(folder / STRUCTURES, types)
    for name in COLUMNS:
        if name not in rows:
            empty = pd.DataFrame({name: [False if COLUMNS[name] == "bool" else None] * len(rows)})
            rows[name] = empty.astype({name: COLUMNS[name]})[name]
    return Evaluation(metrics, rows[list(COLUMNS)])
