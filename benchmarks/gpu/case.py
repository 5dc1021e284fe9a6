"""The options of a case's process, and the file of its answer."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.results import figure
from crystal_jax.compile.chips import GPUS
from crystal_jax.storage.files import write_text


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
        """Returns the seconds until the case is stopped."""
        return self._end - time.monotonic()

    def has_time(self, seconds: float) -> bool:
        """Returns whether something of this duration ends before the case is stopped; always True in a dry run."""
        return self.dry_run or self.seconds_left > seconds


def data_sheet(device_kind: str) -> tuple[float | None, float | None]:
    """Returns the peak of bf16 products (TFLOP/s) and of memory (GB/s) of a known card, else None for both."""
    known = (chip for name, chip in GPUS.items() if name.upper() in device_kind)
    return next(((chip.tflops, chip.hbm_gbps) for chip in known), (None, None))
