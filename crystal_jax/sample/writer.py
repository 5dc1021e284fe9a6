"""The output of one sampling job, which may run in several processes."""

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
    """Every process of a job draws all of its samples; the first one writes them.

    Attributes:
        missing: The numbers of the samples that are not there yet.
    """

    def __init__(self, folder: Path, request: Mapping[str, Any], *, total: int, command: str = "sample"):
        """Begins a folder, or goes on with one of the same request; `run.json` states the command.

        Raises:
            UserError: it holds something else.
        """
        self._folder, self._total, self._samples = folder, total, None
        done = np.zeros(total, bool)
        if processes.is_first():
            self._samples = SamplesFile(folder, request, provenance(("jax", "flax", "pymatgen"), command=command))
            for row in self._samples.rows():
                done[row["index"] :][:1] = True  # there may be more than are asked for now
        self.missing = np.flatnonzero(~multihost_utils.broadcast_one_to_all(done)).tolist()

    def write(self, rows: Iterator[Mapping[str, Any]]) -> None:
        """Writes rows as they come."""
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
        """Writes CSV and CIF files, and returns the path of `samples.csv`."""
        if self._samples:
            self._samples.finish(text_format, limit=self._total, model_name=model_name, extxyz=extxyz)
        processes.wait_for_all("samples are written")
        return self._folder / "samples.csv"
