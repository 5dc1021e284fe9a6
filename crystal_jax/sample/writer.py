"""The writer of one sampling run, which may use several processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from crystal_jax import processes
from crystal_jax.provenance import provenance
from crystal_jax.sample.samples_file import SamplesFile
from crystal_jax.text.crystal_text import TextFormat


class SampleWriter:
    """Writes the samples of a run: every process draws all of them, and only the first process writes.

    Attributes:
        missing: Numbers of the samples that are not on disk yet.
    """

    def __init__(self, folder: Path, request: Mapping[str, Any], *, total: int, command: str = "sample"):
        """Creates a folder, or continues one of the same request; `run.json` records the command.

        Raises:
            UserError: the folder holds something else.
        """
        self._folder, self._total, self._samples = folder, total, None
        done = np.zeros(total, bool)
        if processes.is_first():
            self._samples = SamplesFile(folder, request, provenance(("jax", "flax", "pymatgen"), command=command))
            for row in self._samples.rows():
                done[row["index"] :][:1] = True  # the folder may hold more samples than this run requests
        self.missing = np.flatnonzero(~multihost_utils.broadcast_one_to_all(done)).tolist()

    def write(self, rows: Iterator[Mapping[str, Any]]) -> None:
        """Appends rows to the log as they are drawn."""
        with tqdm(
            total=self._total,
            initial=self._total - len(self.missing),
            desc="sample",
            unit="crystal",
            disable=None if processes.is_first() else True,
        ) as bar:
            for row in rows:
                if self._samples:
                    self._samples.append([row])
                bar.update()

    def finish(self, text_format: TextFormat, *, model_name: str, extxyz: bool) -> Path:
        """Writes CSV and CIF files; returns the path of `samples.csv`."""
        if self._samples:
            self._samples.finish(text_format, limit=self._total, model_name=model_name, extxyz=extxyz)
        processes.wait_for_all("samples are written")
        return self._folder / "samples.csv"
