"""What came of the runs of a sweep, as far as they are: one row a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from crystal_jax.evaluate.metrics import RATES
from crystal_jax.sweep.expand import Run

_LAST = ("loss", "val_loss", "sample_validity", "tokens_per_second", "mfu", "goodput")


def is_finished(workdir: Path) -> bool:
    """Whether a run has saved its last step."""
    last = _num_steps(workdir)
    return last is not None and (workdir / "checkpoints" / str(last)).is_dir()


def collect(runs: Sequence[Run], output: Path) -> pd.DataFrame:
    """One row a run: what was changed, how far it is, and the last figures of its log.

    `best_val_loss` is the lowest of all validations. If there is an evaluation in the workdir's folder `evaluation`,
    its rates are there too.
    """
    rows = [{"run": run.name, **run.overrides, **_progress(output / run.name)} for run in runs]
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame) -> str:
    """The table as Markdown, figures to four digits."""

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return "" if value != value else f"{value:.4g}"
        return str(value).replace("|", "\\|")

    return markdown_lines(
        [list(map(str, table.columns)), *([*map(cell, row)] for row in table.itertuples(index=False))]
    )


def markdown_lines(cells: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, its heading first."""
    lines = [cells[0], ["---"] * len(cells[0]), *cells[1:]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _progress(workdir: Path) -> dict[str, Any]:
    rows = _rows(workdir / "metrics.jsonl")
    steps = [row["step"] for row in rows if "loss" in row]
    status = "finished" if is_finished(workdir) else "begun" if (workdir / "config.json").exists() else "not begun"
    found: dict[str, Any] = {"status": status, "step": max(steps, default=0)}
    for name in _LAST:
        values = [row[name] for row in rows if name in row]
        found[name] = values[-1] if values else None
        if name == "val_loss":
            found["best_val_loss"] = min(values, default=None)
    path = workdir / "evaluation" / "metrics.json"
    metrics = json.loads(path.read_text()) if path.is_file() else {}
    found |= {name: metrics[name]["value"] for name in RATES if metrics.get(name)}
    return found


def _num_steps(workdir: Path) -> int | None:
    path = workdir / "config.json"
    return json.loads(path.read_text())["experiment"]["train"]["num_steps"] if path.is_file() else None


def _rows(path: Path) -> list[dict[str, Any]]:
    """Of a log that may be written to just now: a last line without its end is left out."""
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]
