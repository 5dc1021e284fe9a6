"""Starts the unfinished runs of a sweep, here or as jobs, and writes the table of all runs."""

from __future__ import annotations

import datetime
import json
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from crystal_jax.errors import Preempted, UserError
from crystal_jax.json_files import read_object
from crystal_jax.storage.files import write_text
from crystal_jax.sweep.engines import command_of
from crystal_jax.sweep.expand import Overrides, Run, load_module, load_sweep
from crystal_jax.sweep.results import collect, is_finished, markdown, markdown_lines
from crystal_jax.sweep.summary import summary, write_between_marks

_PREEMPTED = 75  # exit status of `crystal-jax train`


def run_sweep(
    path: Path,
    *,
    output: Path,
    engine: str,
    engine_options: Sequence[str],
    common: Overrides | None,
    dry_run: bool,
    resubmit: bool,
    into: Path | None,
) -> pd.DataFrame:
    """Starts the unfinished runs, and returns the table; see `crystal_jax.sweep.run.sweep`."""
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
    """File of submitted jobs and the time of their submission."""

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
