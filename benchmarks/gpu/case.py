"""What the process of a case is told, and how it answers."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.results import figure
from crystal_jax.storage.files import write_text

# The data sheets of NVIDIA: dense bf16 products, 10¹² a second, and memory, 10⁹ bytes a second.
DATA_SHEETS = {"H200": (989.0, 4800.0), "H100": (989.0, 3350.0), "A100": (312.0, 2039.0)}


class Answer:
    """The figures of a case, written to a file as they are found."""

    def __init__(self, path: Path):
        self._path, self._found = path, dict[str, Any]()

    def put(self, name: str, values: Any, unit: str = "") -> None:
        """Adds a figure where a unit is given, else a plain fact."""
        self._found[name] = figure(values, unit) if unit else values
        write_text(self._path, json.dumps(self._found))


class Case:
    """The options that every case has, and those of this one.

    Attributes:
        bundle: The folder that came with the code.
        output: Where what is trained is kept.
        answer: For the figures.
        dry_run: Toy sizes.
        options: Of this case.
    """

    def __init__(self, description: str | None, **defaults: Any):
        parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--bundle", type=Path, required=True)
        parser.add_argument("--output", type=Path, required=True)
        parser.add_argument("--answer", type=Path, required=True)
        parser.add_argument("--seconds", type=float, default=120.0)
        parser.add_argument("--dry_run", action="store_true")
        for name, default in defaults.items():
            kind = (lambda text: text == "True") if isinstance(default, bool) else type(default)
            parser.add_argument(f"--{name}", type=kind, default=default)
        self.options = parser.parse_args()
        self.bundle, self.output, self.dry_run = self.options.bundle, self.options.output, self.options.dry_run
        self.answer = Answer(self.options.answer)
        self._end = time.monotonic() + self.options.seconds

    @property
    def seconds_left(self) -> float:
        """Until the case is stopped."""
        return self._end - time.monotonic()

    def has_time(self, seconds: float) -> bool:
        """Whether something that takes so long ends before the case is stopped; a dry run has all the time."""
        return self.dry_run or self.seconds_left > seconds


def data_sheet(device_kind: str) -> tuple[float | None, float | None]:
    """TFLOP/s and GB/s that the vendor states, or None for a device that is not in the table."""
    return next((peaks for name, peaks in DATA_SHEETS.items() if name in device_kind), (None, None))
