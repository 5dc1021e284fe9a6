"""Trains one configuration many times with different values, and tabulates the results.

The sweep is a file of configs/sweeps/. The same command, run again, skips finished runs, resumes the others, and
rewrites the table: OUTPUT/results.csv and OUTPUT/results.md. Each run has the workdir OUTPUT/RUN.

Engines: local runs one run after the other on this machine. xpk, skypilot and slurm submit jobs through
launch/ENGINE.sh, so the command must be run at the root of the repository, and both the jobs and this machine must see
OUTPUT. A job that was submitted once is submitted again only with --resubmit.

Example:
  crystal-jax sweep --sweep=configs/sweeps/learning_rate.py --output=runs/learning_rate
  crystal-jax sweep --sweep=configs/sweeps/learning_rate.py --output=runs/lr --engine=slurm --engine_options=--gpus=4
"""

from __future__ import annotations

import ast
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from crystal_jax.errors import UserError
from crystal_jax.storage.files import as_path
from crystal_jax.sweep.engines import ENGINES
from crystal_jax.sweep.expand import Overrides

if TYPE_CHECKING:
    import pandas as pd


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags of `crystal-jax sweep`."""
    flags.DEFINE_string("sweep", None, "The sweep: a file with CONFIG and get_sweep().", flag_values=flag_values)
    flags.DEFINE_string("output", None, "Folder of all runs and of the table.", flag_values=flag_values)
    flags.DEFINE_enum("engine", "local", ENGINES, "What runs the jobs.", flag_values=flag_values)
    flags.DEFINE_string("engine_options", "", "Options for launch/ENGINE.sh, in one string.", flag_values=flag_values)
    flags.DEFINE_multi_string(
        "set", [], "KEY=VALUE of the configuration, for all runs; may be repeated.", flag_values=flag_values
    )
    flags.DEFINE_string(
        "markdown_file",
        None,
        "Also write means over seeds into this Markdown file, between <!-- SWEEP --> and <!-- end SWEEP -->.",
        flag_values=flag_values,
    )
    flags.DEFINE_bool("dry_run", False, "Print the commands, and start nothing.", flag_values=flag_values)
    flags.DEFINE_bool("resubmit", False, "Submit unfinished jobs again.", flag_values=flag_values)
    flags.mark_flags_as_required(["sweep", "output"], flag_values)


def main(flag_values: flags.FlagValues) -> None:
    """Runs `crystal-jax sweep`."""
    table = sweep(
        flag_values.sweep,
        output=flag_values.output,
        engine=flag_values.engine,
        engine_options=_options(flag_values.engine_options),
        common=dict(_assignment(text) for text in flag_values.set),
        dry_run=flag_values.dry_run,
        resubmit=flag_values.resubmit,
        into=flag_values.markdown_file or None,
    )
    # Late, so that --help and bad flags answer at once.
    from crystal_jax.sweep.results import markdown

    if not flag_values.dry_run:
        print(markdown(table), end="")
        print(f"\nwritten: {flag_values.output}/results.csv, results.md")


def sweep(
    path: Path | str,
    *,
    output: Path | str,
    engine: str = "local",
    engine_options: Sequence[str] = (),
    common: Overrides | None = None,
    dry_run: bool = False,
    resubmit: bool = False,
    into: Path | str | None = None,
) -> pd.DataFrame:
    """Starts the unfinished runs, and returns the table (see `results.collect`).

    Args:
        path: the sweep file.
        output: folder of all runs and of the table.
        engine: one of `ENGINES`.
        engine_options: options for the engine's script in launch/.
        common: overrides of all runs.
        dry_run: whether to only print the commands.
        resubmit: whether to submit unfinished jobs again.
        into: Markdown file for means over seeds (`summary.py`), between the marks with the sweep's name.

    Raises:
        UserError: the sweep is invalid, or runs failed; the other runs are done, and the table has all runs.
        Preempted: a run on this machine was preempted.
    """
    path, output = as_path(path, "path"), as_path(output, "output")
    into = None if into is None else as_path(into, "into")
    if engine not in ENGINES:
        raise UserError(f"no engine {engine!r}; there are: {', '.join(ENGINES)}")
    # Late, so that --help and bad flags answer at once.
    from crystal_jax.sweep.sweep_run import run_sweep

    return run_sweep(
        path,
        output=output,
        engine=engine,
        engine_options=engine_options,
        common=common,
        dry_run=dry_run,
        resubmit=resubmit,
        into=into,
    )


def _options(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(f"--engine_options={text}: {error}") from error


def _assignment(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise UserError(f"--set={text}: write KEY=VALUE, such as train.num_steps=2000")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # a word
        return key, value
