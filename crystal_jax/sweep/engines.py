"""Builds the command that starts a run: on this machine, or as a job of an engine with a script in launch/."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from crystal_jax.sweep.expand import Run

ENGINES = ("local", "xpk", "skypilot", "slurm")

_LONGEST_JOB = 40  # XPK's limit


def command_of(run: Run, workdir: Path, *, engine: str, sweep: str, options: Sequence[str]) -> list[str]:
    """Returns the command of a run.

    Args:
        run: the run.
        workdir: its workdir, as the job sees it.
        engine: one of `ENGINES`.
        sweep: name of the sweep, the first part of the job name.
        options: options for the engine's script, such as --cluster=….
    """
    train = ["train", *run.flags(), f"--workdir={workdir}"]
    if engine == "local":
        return [sys.executable, "-m", "crystal_jax.cli", *train]
    return [f"launch/{engine}.sh", f"--name={job_name(sweep, run)}", *options, "--", *train, "--distributed"]


def job_name(sweep: str, run: Run) -> str:
    """Returns a unique job name of lower-case letters, digits and hyphens, as Kubernetes requires."""
    stem = re.sub(r"[^a-z0-9]+", "-", sweep.lower()).strip("-")
    return f"{stem[: _LONGEST_JOB - 9]}-{hashlib.sha256(run.name.encode()).hexdigest()[:8]}"
