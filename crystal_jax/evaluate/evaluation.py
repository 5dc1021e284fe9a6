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
from crystal_jax.files import write_text
from crystal_jax.json_files import read_object
from crystal_jax.tables import read_bytes, read_frame, to_csv

FORMAT = 2  # goes up when columns or keys change their meaning
METRICS, STRUCTURES, CANDIDATES = "metrics.json", "structures.csv", "candidates.csv"
_AGAIN = "run 'crystal-jax evaluate' again"


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What `crystal-jax evaluate` wrote: `metrics.json` and `structures.csv`."""

    metrics: dict[str, Any]
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
    content = {**metrics, "format": FORMAT, "files": digests}
    write_text(folder / METRICS, json.dumps(content, indent=2, allow_nan=False) + "\n")
    return content


def read_evaluation(folder: Path) -> Evaluation:
    """Reads the folder of an evaluation.

    Raises:
        UserError: a file is missing, damaged, of another version, or not of the same run as the others.
    """
    for name in (METRICS, STRUCTURES):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: no {name}; is this the --output of 'crystal-jax evaluate'?")
    stated = read_object(folder / METRICS, advice=_AGAIN)
    metrics = dict(stated.content)
    if metrics.get("format") != FORMAT:
        raise UserError(f"{folder / METRICS} is of another version of crystal_jax; {_AGAIN}")
    digests = metrics.get("files")
    found = hashlib.sha256(read_bytes(folder / STRUCTURES)).hexdigest()
    if not isinstance(digests, dict) or digests.get(STRUCTURES) != found:
        raise UserError(f"{folder}: {STRUCTURES} is not of the same run as {METRICS}; {_AGAIN}")
    return Evaluation(metrics, read_frame(folder / STRUCTURES, COLUMNS))
