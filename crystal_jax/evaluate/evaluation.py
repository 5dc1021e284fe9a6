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
from crystal_jax.evaluate.candidates import CandidateCifs, candidates, write_cifs
from crystal_jax.evaluate.columns import COLUMNS, empty_column
from crystal_jax.evaluate.metrics.rates import summary
from crystal_jax.json_files import JsonObject, read_object
from crystal_jax.old_names import present_columns, present_types
from crystal_jax.storage.files import write_text
from crystal_jax.tables import read_bytes, read_frame, read_rows, to_csv

METRICS, STRUCTURES, CANDIDATES = "metrics.json", "structures.csv", "candidates.csv"
_AGAIN = "run 'crystal-jax evaluate' again"
_NEEDED = ("name", "formula", "reduced_formula", "valid", "unique", "spacegroup", "e_above_hull", "failure_reason")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Result of an evaluation.

    Attributes:
        metrics: the content of `metrics.json`.
        table: one row per sample, with the columns of `structures.csv`; those that were not measured are empty.
        folder: the folder of its files; None if they were not written.
    """

    metrics: Mapping[str, Any]
    table: pd.DataFrame
    folder: Path | None = None

    @property
    def candidates(self) -> pd.DataFrame:
        """The valid, unique and new samples, ranked if they have energies above the hull."""
        return candidates(self.table)

    @property
    def json(self) -> JsonObject:
        """The metrics with typed access, whose errors name the file and the key."""
        return JsonObject(self.metrics, (self.folder or Path()) / METRICS, advice=_AGAIN)

    def __str__(self) -> str:
        """Returns the metrics as a small table."""
        return summary(self.metrics)


def write_evaluation(
    folder: Path, evaluation: Evaluation, cifs: Mapping[str, CandidateCifs] | None = None
) -> Evaluation:
    """Writes an evaluation, `metrics.json` last, and returns it with the digests of its tables among the metrics.

    Args:
        folder: created if it does not exist.
        evaluation: the evaluation.
        cifs: CIFs by sample name; None leaves `candidates/` as it is.

    Raises:
        UserError: the folder cannot be written to.
    """
    ranked = evaluation.candidates
    tables = {STRUCTURES: to_csv(evaluation.table), CANDIDATES: to_csv(ranked)}
    for name, text in tables.items():
        write_text(folder / name, text)
    if cifs is not None:
        write_cifs(ranked, cifs, folder / "candidates")
    digests = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in tables.items()}
    content = {**evaluation.metrics, "files": digests}
    write_text(folder / METRICS, json.dumps(content, indent=2, allow_nan=False) + "\n")
    return Evaluation(content, evaluation.table, folder)


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
    columns = read_rows(folder / STRUCTURES).columns
    types, present = present_types(columns, COLUMNS, old_names.COLUMNS)
    names = {present.get(column, column) for column in types}
    if missing := [name for name in _NEEDED if name not in names]:
        raise UserError(f"{folder / STRUCTURES} lacks the column {missing[0]}; {_AGAIN}")
    rows = read_frame(folder / STRUCTURES, types).rename(columns=present)
    absent = [empty_column(name, len(rows)) for name in COLUMNS if name not in rows]
    return Evaluation(content, pd.concat([rows, *absent], axis=1)[list(COLUMNS)], folder)
