"""Runs an evaluation: inputs, stages, metrics, files."""

from __future__ import annotations

import time
from pathlib import Path

import pandas as pd

from crystal_jax.evaluate.candidates import CandidateCifs
from crystal_jax.evaluate.columns import COLUMNS
from crystal_jax.evaluate.config import EvaluateConfig
from crystal_jax.evaluate.evaluation import Evaluation, write_evaluation
from crystal_jax.evaluate.inputs import Inputs
from crystal_jax.evaluate.results import content_of
from crystal_jax.evaluate.stages import run_stages


def run_evaluation(config: EvaluateConfig, *, command: str | None = None) -> Evaluation:
    """Evaluates crystals, and writes the files if the settings name a folder.

    Args:
        config: the settings.
        command: the command line, for the report.

    Raises:
        UserError: an input is missing or unreadable, or the folder cannot be written to.
    """
    start = time.monotonic()
    inputs = Inputs.read(config)
    table = run_stages(inputs)
    content = content_of(table, inputs, command=command)
    content["seconds"] = round(time.monotonic() - start, 1)
    evaluation = Evaluation(content, table[list(COLUMNS)])
    if config.output is None:
        return evaluation
    relaxed = table["relaxed_cif"].to_dict()
    cifs = {
        sample.name: CandidateCifs(sample.cif, None if pd.isna(relaxed[i]) else str(relaxed[i]))
        for i, sample in enumerate(inputs.samples)
    }
    return write_evaluation(Path(config.output), evaluation, cifs)
