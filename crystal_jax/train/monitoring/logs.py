"""Writes training curves as JSON lines and for TensorBoard. Only the first process writes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorboardX

from crystal_jax.storage.files import write_text


class MetricsLog:
    """Appends rows to `metrics.jsonl` and `skipped.jsonl`, and writes TensorBoard events.

    Rows after `resume_step` are deleted, because those steps run again. With `speaks` False nothing is written; only
    one process of a run should write.
    """

    def __init__(self, workdir: Path, *, resume_step: int, speaks: bool = True):
        self._metrics, self._skipped = workdir / "metrics.jsonl", workdir / "skipped.jsonl"
        self._board = None
        if speaks:
            for path in (self._metrics, self._skipped):
                _forget_after(path, resume_step)
            self._board = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=resume_step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes a row; it is on disk when this returns."""
        if self._board is not None:
            _append(self._metrics, {"step": step, **values})
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def write_skipped(self, step: int, values: Mapping[str, float], crystals: Sequence[str]) -> None:
        """Records a skipped step and the crystals in its batch."""
        if self._board is not None:
            _append(self._skipped, {"step": step, **values, "crystals": list(crystals)})

    def last(self, name: str) -> float | None:
        """Returns the latest value of a metric, or None."""
        rows = _rows(self._metrics)
        return next((row[name] for row in reversed(rows) if name in row), None)

    def close(self) -> None:
        """Closes the TensorBoard file."""
        if self._board is not None:
            self._board.close()


def _append(path: Path, row: Mapping[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def _rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # a line truncated by a crash
            continue
        if "step" in row:
            rows.append(row)
    return rows


def _forget_after(path: Path, step: int) -> None:
    if path.exists():
        write_text(path, "".join(f"{json.dumps(row)}\n" for row in _rows(path) if row["step"] <= step))
