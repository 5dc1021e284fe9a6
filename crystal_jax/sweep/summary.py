"""Summarises runs that differ only in their seeds as one row: mean and range over seeds, next to published figures.

A sweep file may define `TITLE`, a heading; `PUBLISHED`, figures of the literature by row and column (`FIGURES`); and
`NOTE`, a paragraph below the table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crystal_jax.errors import UserError
from crystal_jax.evaluate.evaluation import METRICS
from crystal_jax.json_files import read_lines, read_object
from crystal_jax.storage.files import write_text
from crystal_jax.sweep.expand import Run
from crystal_jax.sweep.results import EVALUATION_ADVICE, LOG_ADVICE, collect

SCORES = "scores/scores.jsonl"  # output of `crystal-jax score` in a workdir
_SCORES_ADVICE = "score the crystals again"
_SEEDS = re.compile(r"\.seed$")

# Heading, and factor of the values, by column.
FIGURES: Mapping[str, tuple[str, float]] = {
    "best_val_loss": ("validation loss, nats a token", 1),
    "nats": ("nats a crystal", 1),
    "ipt": ("IPT", 1),
    "structural_validity": ("structure valid, %", 100),
    "compositional_validity": ("composition valid, %", 100),
    "coverage_recall": ("recall, %", 100),
    "coverage_precision": ("precision, %", 100),
    "density": ("density distance", 1),
    "num_elements": ("elements distance", 1),
}


def summary(
    runs: Sequence[Run], output: Path, published: Mapping[str, Mapping[str, float]] | None = None
) -> list[list[str]]:
    """Returns the cells of the table, heading first: "mean (lowest–highest)" over the finished runs of each row.

    A column without figures is left out; a cell without figures is empty. Published figures follow a slash and are
    already in the column's unit.

    Args:
        runs: runs of a sweep.
        output: folder of their workdirs.
        published: figures by row and column.
    """
    published = published or {}
    finished = collect(runs, output)["status"] == "finished"
    rows: dict[str, list[dict[str, float]]] = {}
    for run, done in zip(runs, finished, strict=True):
        group = rows.setdefault(row_of(run), [])
        if done:
            group.append(figures(output / run.name))
    shown = [name for name in FIGURES if any(name in one for group in rows.values() for one in group)]
    if unknown := {name for known in published.values() for name in known} - FIGURES.keys():
        raise UserError(f"PUBLISHED has {', '.join(sorted(unknown))}; there are: {', '.join(FIGURES)}")
    lines = [["", "seeds", *(FIGURES[name][0] for name in shown)]]
    for row, group in rows.items():
        cells = [_cell([one[name] for one in group if name in one], FIGURES[name][1]) for name in shown]
        known = [published.get(row, {}).get(name) for name in shown]
        both = [cell if value is None else f"{cell} / {value:.3g}" for cell, value in zip(cells, known, strict=True)]
        lines.append([row, str(len(group)), *both])
    return lines


def row_of(run: Run) -> str:
    """Returns the name of a run without its seeds: its variant and other overrides."""
    variant = run.config.partition(":")[2]
    others = [f"{key}={value}" for key, value in run.overrides.items() if not _SEEDS.search(key)]
    return " ".join([variant, *others]).strip() or "default"


def figures(workdir: Path) -> dict[str, float]:
    """Returns the figures of a run: from its log, its folder `evaluation`, and its scores of test crystals."""
    found: dict[str, Any] = {}
    log = read_lines(workdir / "metrics.jsonl", advice=LOG_ADVICE)
    found["best_val_loss"] = min((row.number("val_loss") for row in log if "val_loss" in row), default=None)
    if (workdir / "evaluation" / METRICS).is_file():
        metrics = read_object(workdir / "evaluation" / METRICS, advice=EVALUATION_ADVICE)
        for name in FIGURES:
            for key in (name, f"wasserstein_{name}"):
                if name not in found and key in metrics:
                    found[name] = metrics.part(key).number("value", None)
    if (workdir / SCORES).is_file():
        scored = [row for row in read_lines(workdir / SCORES, advice=_SCORES_ADVICE) if "reason" not in row]
        found["nats"] = -np.mean([row.number("log_prob") for row in scored]) if scored else None
        shifts = [row.number("ipt") for row in scored if "ipt" in row]
        found["ipt"] = np.mean(shifts) if shifts else None
    return {name: float(value) for name, value in found.items() if value is not None}


def write_between_marks(path: Path, name: str, text: str) -> None:
    """Replaces the text between the lines `<!-- NAME -->` and `<!-- end NAME -->` of a file.

    Raises:
        UserError: the file does not have both lines, in this order.
    """
    begin, end = f"<!-- {name} -->\n", f"<!-- end {name} -->\n"
    old = path.read_text() if path.is_file() else ""
    head, first, rest = old.partition(begin)
    _, second, tail = rest.partition(end)
    if not first or not second:
        raise UserError(f"{path} has no lines {begin.strip()} and {end.strip()} for the table to stand between")
    write_text(path, f"{head}{begin}{text}{end}{tail}")


def _cell(values: Sequence[float], scale: float) -> str:
    if not values:
        return ""
    mean, low, high = (scale * f(values) for f in (np.mean, np.min, np.max))
    return f"{mean:.3g}" if len(values) == 1 else f"{mean:.3g} ({low:.3g}–{high:.3g})"
