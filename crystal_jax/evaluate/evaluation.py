"""Reads and writes an evaluation: `metrics.json`, `structures.csv`, `candidates.csv` and `candidates/`.

`metrics.json` is written last and contains the SHA-256 of the tables. So a reader notices tables of an interrupted
evaluation beside the metrics of an earlier one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from crystal_jax import old_names
from crystal_jax.errors import UserError
from crystal_jax.evaluate.candidates import candidates, write_cifs
from crystal_jax.evaluate.structures import COLUMNS
from crystal_jax.json_files import JsonObject, read_object
from crystal_jax.old_names import present_columns, present_types
from crystal_jax.storage.files import write_text
from crystal_jax.tables import read_bytes, read_frame, read_rows, to_csv

METRICS, STRUCTURES, CANDIDATES = "metrics.json", "structures.csv", "candidates.csv"
_AGAIN = "run 'crystal-jax evaluate' again"
_NEEDED = ("name", "formula", "reduced_formula", "valid", "unique", "spacegroup", "e_above_hull", "failure_reason")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Evaluation that `crystal-jax evaluate` wrote.

    Attributes:
        metrics: the object in `metrics.json`.
        rows: `structures.csv`; columns that an older version did not write are empty.
    """

    metrics: JsonObject
    rows: pd.DataFrame


def write_evaluation(
    folder: Path, rows: pd.DataFrame, metrics: Mapping[str, Any], cifs: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Writes an evaluation, `metrics.json` last, and returns the content of `metrics.json`.

    Args:
        folder: created if it does not exist.
        rows: one row per sample, see `structures.COLUMNS`.
        metrics: the measured values.
        cifs: CIFs by sample name, of the relaxed crystal if there is one; None leaves `candidates/` as it is.

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
        UserError: a file is missing or damaged, or table and metrics are from different runs.
    """
    for name in (METRICS, STRUCTURES):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: no {name}; is this the --output of 'crystal-jax evaluate'?")
    metrics = read_object(folder / METRICS, advice=_AGAIN)
    digests = metrics.content.get("files")  # versions before 0.2 did not write them
    found = hashlib.sha256(read_bytes(folder / STRUCTURES)).hexdigest()
    if digests is not None and (not isinstance(digests, dict) or digests.get(STRUCTURES) != found):
        raise UserError(f"{folder}: {STRUCTURES} is not of the same run as {METRICS}; {_AGAIN}")
    renamed = present_columns(metrics.content, old_names.METRICS)
    content = {renamed.get(name, name): value for name, value in metrics.content.items()}
    metrics = dataclasses.replace(metrics, content=content)
    columns = read_rows(folder / STRUCTURES).columns
    types, present = present_types(columns, COLUMNS, old_names.COLUMNS)
    names = {present.get(column, column) for column in types}
    if missing := [name for name in _NEEDED if name not in names]:
        raise UserError(f"{folder / STRUCTURES} lacks the column {missing[0]}; {_AGAIN}")
    rows = read_frame(folder / STRUCTURES, types).rename(columns=present)
    for name in COLUMNS:
        if name not in rows:
            empty = pd.DataFrame({name: [False if COLUMNS[name] == "bool" else None] * len(rows)})
            rows[name] = empty.astype({name: COLUMNS[name]})[name]
    return Evaluation(metrics, rows[list(COLUMNS)])
