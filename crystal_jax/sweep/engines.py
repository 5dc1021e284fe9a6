"""A run → the command that starts it: here, or as a job of an engine that launch/ has a script for."""

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
    """The command of one run.

    Args:
        run: What to train.
        workdir: Where, as the job sees it.
        engine: One of `ENGINES`.
        sweep: The sweep's name, the first part of a job's.
        options: For the engine's script, such as --cluster=….
    """
    train = ["train", *run.flags(), f"--workdir={workdir}"]
    if engine == "local":
        return [sys.executable, "-m", "crystal_jax.cli", *train]
    return [f"launch/{engine}.sh", f"--name={job_name(sweep, run)}", *options, "--", *train, "--distributed"]


def job_name(sweep: str, run: Run) -> str:
    """Lower-case letters, digits and hyphens, as Kubernetes wants them; other runs have other names."""
    stem = re.sub(r"[^a-z0-9]+", "-", sweep.lower()).strip("-")
    return f"{stem[: _LONGEST_JOB - 9]}-{hashlib.sha256(run.name.encode()).hexdigest()[:8]}"
