"""Writes an evaluation as one HTML page that can be mailed: figures, tables, crystals that can be rotated.

Reads the output of 'crystal-jax evaluate' (metrics.json, structures.csv, and the samples file for the drawings) and
writes one file that needs no network.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from absl import flags

from crystal_jax.errors import UserError
from crystal_jax.storage.files import as_path


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
    path = report(
        flag_values.evaluation, output=flag_values.output, training_log=flag_values.training_log, beside=beside
    )
    print(f"written: {path}")


def report(
    evaluation: str | Path,
    *,
    output: str | Path | None = None,
    training_log: str | Path | None = None,
    beside: Mapping[str, str | Path] | None = None,
) -> Path:
    """Writes the report of an evaluation as one HTML file, and returns its path.

    Args:
        evaluation: folder with `metrics.json` and `structures.csv`.
        output: the HTML file; by default `report.html` in that folder.
        training_log: JSON lines with `step` and any of `loss`, `val_loss` and `tokens_per_second`.
        beside: folders of other evaluations, by the names of their rows in the table of comparisons.

    Raises:
        UserError: an input is missing or malformed, or the output cannot be written.
    """
    # Late, so that --help and bad flags answer at once.
    from crystal_jax.report.html import write_report

    return write_report(
        as_path(evaluation, "evaluation"),
        output=None if output is None else as_path(output, "output"),
        training_log=None if training_log is None else as_path(training_log, "training_log"),
        beside={name: as_path(folder, "beside") for name, folder in (beside or {}).items()},
    )
