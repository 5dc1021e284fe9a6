"""Trains one configuration many times, each time with other values, and tabulates what comes of it.

The sweep is a file of configs/sweeps/. Run again, the same command leaves finished runs alone, goes on with the
others, and writes the table anew: OUTPUT/results.csv and OUTPUT/results.md. Each run has the workdir OUTPUT/RUN.

Engines: local runs one after another here. xpk, skypilot and slurm submit jobs through launch/ENGINE.sh, so the command
is given at the root of the repository; OUTPUT is then a place that the jobs and this machine both see. A job that was
submitted once is not submitted again unless --resubmit says so.

Example:
  crystal-jax sweep --sweep=configs/sweeps/learning_rate.py --output=runs/learning_rate
  crystal-jax sweep --sweep=configs/sweeps/learning_rate.py --output=runs/lr --engine=slurm --engine_options=--gpus=4
"""

from __future__ import annotations

import ast
import datetime
import json
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from absl import flags

from crystal_jax.errors import Preempted, UserError
from crystal_jax.json_files import read_object
from crystal_jax.storage.files import as_path, write_text
from crystal_jax.sweep.engines import ENGINES, command_of
from crystal_jax.sweep.expand import Overrides, Run, load_module, load_sweep
from crystal_jax.sweep.results import collect, is_finished, markdown, markdown_lines
from crystal_jax.sweep.summary import summary, write_between_marks

_PREEMPTED = 75


def define_flags(flag_values: flags.FlagValues) -> None:
    """The command's flags."""
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
    """Entry of `crystal-jax sweep`."""
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
    """Starts what is not finished, and returns the table (see `results.collect`).

    Args:
        path: The sweep file.
        output: Folder of all runs and of the table.
        engine: One of `ENGINES`.
        engine_options: For the engine's script in launch/.
        common: Overrides of all runs.
        dry_run: Print the commands only.
        resubmit: Submit jobs again that are not finished.
        into: A Markdown file for means over seeds (`summary.py`), between the marks of the sweep's name.

    Raises:
        UserError: a bad sweep, or runs that failed; the others are done, and all are in the table.
        Preempted: a run on this machine was asked to stop.
    """
    path, output = as_path(path, "path"), as_path(output, "output")
    into = None if into is None else as_path(into, "into")
    if engine not in ENGINES:
        raise UserError(f"no engine {engine!r}; there are: {', '.join(ENGINES)}")
    runs = load_sweep(path, common)
    jobs = _Jobs(output / "jobs.json")
    failed = []
    for run in runs:
        workdir = output / run.name
        if is_finished(workdir) or (engine != "local" and run.name in jobs.submitted and not resubmit):
            continue
        command = command_of(run, workdir, engine=engine, sweep=path.stem, options=engine_options)
        if dry_run:
            print(shlex.join(command))
            continue
        status = _start(command)
        if status == _PREEMPTED:
            raise Preempted(f"{run.name} was asked to stop, and is saved; the same command goes on with it")
        if status:
            failed.append(run.name)
        elif engine != "local":
            jobs.note(run.name, command)
    table = collect(runs, output)
    if not dry_run:
        write_text(output / "results.csv", table.to_csv(index=False))
        write_text(output / "results.md", markdown(table))
        if into is not None:
            write_between_marks(into, path.stem, _section(path, runs, output))
    if failed:
        raise UserError(f"{len(failed)} of {len(runs)} runs failed, the first: {failed[0]}; its message is above")
    return table


def _section(path: Path, runs: Sequence[Run], output: Path) -> str:
    module = load_module(path)
    command = f"crystal-jax sweep --sweep={path} --output={output}"
    table = markdown_lines(summary(runs, output, getattr(module, "PUBLISHED", None)))
    return (
        f"## {getattr(module, 'TITLE', path.stem)}\n\n`{command}`. Mean (lowest–highest) over the seeds whose runs are "
        f"finished; after a slash, where there is one, what the paper reports, of other data.\n\n{table}"
        + (f"\n{note}\n" if (note := getattr(module, "NOTE", "")) else "")
    )


class _Jobs:
    """Which jobs were submitted, and when, in a file."""

    def __init__(self, path: Path):
        self._path = path
        advice = "delete the file to forget which jobs were submitted; the runs themselves are whole"
        self.submitted: dict[str, Any] = dict(read_object(path, advice=advice).content) if path.is_file() else {}

    def note(self, name: str, command: Sequence[str]) -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self.submitted[name] = {"submitted": now, "command": shlex.join(command)}
        write_text(self._path, json.dumps(self.submitted, indent=2) + "\n")


def _start(command: Sequence[str]) -> int:
    try:
        return subprocess.run(command, check=False).returncode
    except FileNotFoundError as error:
        raise UserError(f"no {command[0]} here; give the command at the root of the repository") from error


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
