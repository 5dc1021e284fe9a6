"""Writes an evaluation as one HTML page that can be mailed: figures, tables, crystals that can be rotated.

Reads the output of 'crystal-jax evaluate' (metrics.json, structures.csv, and the samples file for the drawings) and
writes one file that needs no network.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from crystal_jax.errors import UserError
from crystal_jax.report.html import write_report


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags of `crystal-jax report`."""
    flags.DEFINE_string("evaluation", None, "Folder written by 'evaluate'.", required=True, flag_values=flag_values)
    flags.DEFINE_string(
        "output", None, "The HTML file; by default report.html in that folder.", flag_values=flag_values
    )
    flags.DEFINE_string(
        "training_log",
        None,
        "metrics.jsonl of a training run, to show its curve: step, loss, val_loss, tokens_per_second.",
        flag_values=flag_values,
    )
    flags.DEFINE_list(
        "compare",
        [],
        "NAME=FOLDER of further evaluations, to be rows of the table of comparisons.",
        flag_values=flag_values,
    )


def main(flag_values: flags.FlagValues) -> None:
    """Runs `crystal-jax report`."""
    beside = dict(text.rpartition("=")[::2] for text in flag_values.compare)
    if not all(beside):
        raise UserError(f"--compare={','.join(flag_values.compare)} is not written NAME=FOLDER")
    path = write_report(
        Path(flag_values.evaluation),
        output=Path(flag_values.output) if flag_values.output else None,
        training_log=Path(flag_values.training_log) if flag_values.training_log else None,
        beside={name: Path(folder) for name, folder in beside.items()},
    )
    print(f"written: {path}")
