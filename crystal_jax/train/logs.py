"""Training curves: one JSON object a line, and the same numbers for TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import tensorboardX

from crystal_jax.files import write_text


class MetricsLog:
    """Appends rows to `metrics.jsonl`; rows after `resume_step` belong to a part that is run again, and go."""

    def __init__(self, workdir: Path, *, resume_step: int):
        self._path = workdir / "metrics.jsonl"
        if self._path.exists():
            rows = [line for line in self._path.read_text().splitlines() if _step(line) <= resume_step]
            write_text(self._path, "".join(f"{row}\n" for row in rows))
        self._board = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=resume_step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One row; it is on disk when this returns."""
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Finishes the TensorBoard file."""
        self._board.close()


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):  # a line cut short by a crash
        return float("inf")
