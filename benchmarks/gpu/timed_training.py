"""Trains a configuration for as many steps as the time allows."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu.case import Case
from crystal_jax.train.run import train

_PROBE = 60  # steps that tell how long one takes


def train_for(case: Case, config: Mapping[str, Any], workdir: Path, *, seconds: float, at_most: int) -> list[dict]:
    """Trains for about so many seconds, compilation included, and returns the lines of `metrics.jsonl`.

    A run of few steps tells first what a step takes, so that the learning rate's decay ends with the time. The workdir
    of a run that was cut off before is continued as it was planned.

    Args:
        case: For its figures.
        config: The tree of a configuration.
        workdir: Of the run.
        seconds: To train for.
        at_most: Steps that are enough.
    """
    begin = time.monotonic()
    planned = workdir.with_name(f"{workdir.name}.steps")  # of a run that was cut off
    if planned.is_file():
        steps = int(planned.read_text())
    elif case.dry_run:
        steps = 3
    else:
        probe = workdir.with_name(f"{workdir.name}-probe")
        shutil.rmtree(probe, ignore_errors=True)
        train(_with_steps(config, _PROBE, every=_PROBE), workdir=probe)
        rows = read_metrics(probe)
        each = (rows[-1]["productive_seconds"] - rows[0]["productive_seconds"]) / max(
            rows[-1]["step"] - rows[0]["step"], 1
        )
        left = seconds - (time.monotonic() - begin)
        steps = max(_PROBE, min(at_most, int(left / (1.15 * each))))  # validations take the rest
        planned.write_text(str(steps))
        case.answer.put("step", 1e3 * each, "ms")
    case.answer.put("steps", steps)
    train(_with_steps(config, steps, every=max(steps // 10, 1)), workdir=workdir)
    rows = read_metrics(workdir)
    case.answer.put("validation_loss", [[row["step"], row["val_loss"]] for row in rows if "val_loss" in row])
    rates = [row["tokens_per_second"] for row in rows if "tokens_per_second" in row]
    if rates:
        case.answer.put("tokens_per_s", rates, "real tokens/s")
    return rows


def _with_steps(config: Mapping[str, Any], steps: int, *, every: int) -> dict[str, Any]:
    """The configuration with another length; it logs often, validates and saves every so many steps."""
    changed = dict(config)
    changed["train"] = dict(config["train"]) | dict(
        num_steps=steps, log_every=min(20, every), eval_every=every, save_every=every
    )
    return changed


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The lines of a run's log."""
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
