"""Trains a model on a prepared data set: all parameters, or LoRA adapters on a frozen base.

The configuration is a file of configs/, as --config=configs/mp20_open.py or, if the file has variants,
--config=configs/mp20_open.py:lora. --config.section.key=value overrides any value. A workdir that already holds
checkpoints of this run is resumed; the result equals that of an uninterrupted run.

On a pod the same command runs on every host, with --distributed, and the workdir is on a disk that all hosts share
(docs/PODS.md). The batches do not depend on the number of hosts, so a run may be resumed with more or fewer.

Exit status 75 means that the machine is being stopped (SIGTERM, or an announcement of Google's metadata server) and
the state is saved: run the same command again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from crystal_jax import processes
from crystal_jax.config import Experiment
from crystal_jax.errors import UserError
from crystal_jax.storage.files import as_path


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags of `crystal-jax train`."""
    config_flags.DEFINE_config_file(
        "config", None, "Run configuration: FILE.py or FILE.py:variant.", flag_values=flag_values
    )
    flags.DEFINE_string("workdir", None, "Checkpoints and logs; a non-empty one is resumed.", flag_values=flag_values)
    flags.DEFINE_string(
        "profile_steps", None, "START:STOP, steps to trace into the workdir's profile folder.", flag_values=flag_values
    )
    processes.define_flags(flag_values)
    flags.mark_flags_as_required(["config", "workdir"], flag_values)


def main(flag_values: flags.FlagValues) -> None:
    """Runs `crystal-jax train`."""
    try:
        config = flag_values.config.to_dict()
    except OSError as error:  # ml_collections reports a file that does not load only at first use
        raise UserError(f"--config does not load: {' '.join(str(error.__cause__ or error).split())}") from error
    processes.join_if_asked(flag_values)
    train(config, workdir=flag_values.workdir, profile_steps=flag_values.profile_steps)


def train(
    config: Mapping[str, Any],
    *,
    workdir: Path | str,
    stop_after: int | None = None,
    profile_steps: str | None = None,
) -> Experiment:
    """Trains according to a configuration tree, and returns its typed form.

    Args:
        config: the tree that a file of `configs/` returns, as nested dicts.
        workdir: folder for checkpoints, `metrics.jsonl` and TensorBoard files; resumed if it holds this run.
        stop_after: step after which to stop early, with a checkpoint.
        profile_steps: START:STOP, steps to trace into `workdir/profile`.

    Raises:
        UserError: configuration, data set or workdir is unusable, or a loss is not finite.
        Preempted: SIGTERM or an announcement came; call it again to resume.
    """
    started = time.time()
    workdir = as_path(workdir, "workdir")
    # Late, so that --help and bad flags answer at once.
    from crystal_jax.train.training_run import TrainingRun

    training = TrainingRun(config, profile_steps=profile_steps)
    training.run(workdir, stop_after=stop_after, started=started)
    return training.experiment
