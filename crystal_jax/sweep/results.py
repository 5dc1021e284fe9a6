"""Collects the results of a sweep's runs, finished or not, one row per run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from crystal_jax.evaluate.evaluation import METRICS
from crystal_jax.evaluate.metrics.rates import RATES
from crystal_jax.json_files import read_lines, read_object
from crystal_jax.sweep.expand import Run

EVALUATION_ADVICE = "evaluate the run's samples again"
LOG_ADVICE = "delete the damaged line; the checkpoints are whole"
_LAST = ("loss", "val_loss", "sample_validity", "tokens_per_second", "mfu", "goodput")


def is_finished(workdir: Path) -> bool:
    """Whether a run has saved its last step."""
    last = _num_steps(workdir)
    return last is not None and (workdir / "checkpoints" / str(last)).is_dir()


def collect(runs: Sequence[Run], output: Path) -> pd.DataFrame:
    """Returns a row per run: its overrides, its progress, and the last figures of its log.

    `best_val_loss` is the lowest of all validation losses. If the workdir has an evaluation in the folder `evaluation`,
    its rates are included.
    """
    rows = [{"run": run.name, **run.overrides, **_progress(output / run.name)} for run in runs]
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame) -> str:
    """Formats the table as Markdown, with figures to four digits."""

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return "" if value != value else f"{value:.4g}"
        return str(value).replace("|", "\\|")

    return markdown_lines(
        [list(map(str, table.columns)), *([*map(cell, row)] for row in table.itertuples(index=False))]
    )


def markdown_lines(cells: Sequence[Sequence[str]]) -> str:
    """Formats cells as a Markdown table; the first row is the heading."""
    lines = [cells[0], ["---"] * len(cells[0]), *cells[1:]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _progress(workdir: Path) -> dict[str, Any]:
    log = workdir / "metrics.jsonl"
    rows = read_lines(log, advice=LOG_ADVICE) if log.is_file() else []
    steps = [row.integer("step", least=0) for row in rows if "loss" in row]
    status = "finished" if is_finished(workdir) else "begun" if (workdir / "config.json").exists() else "not begun"
    found: dict[str, Any] = {"status": status, "step": max(steps, default=0)}
    for name in _LAST:
        values = [row.number(name) for row in rows if name in row]
        found[name] = values[-1] if values else None
        if name == "val_loss":
            found["best_val_loss"] = min(values, default=None)
    path = workdir / "evaluation" / METRICS
    if path.is_file():
        metrics = read_object(path, advice=EVALUATION_ADVICE)
        found |= {name: metrics.part(name).number("value", None) for name in RATES if name in metrics}
    return found


def _num_steps(workdir: Path) -> int | None:
    path = workdir / "config.json"
    if not path.is_file():
        return None
    stated = read_object(path, advice="delete the run's folder to train it again")
    return stated.part("experiment").part("train").integer("num_steps", least=1)
