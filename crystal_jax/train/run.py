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

import dataclasses
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from crystal_jax import processes
from crystal_jax.config import Experiment, from_config_dict, tokenizer_config
from crystal_jax.data.mp20 import open_split
from crystal_jax.errors import UserError
from crystal_jax.storage.files import as_path
from crystal_jax.text.tokenizer import load_tokenizer


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
    # Imported late, so that --help and flag errors are fast.
    import jax

    from crystal_jax.checkpoint.workdir import claim
    from crystal_jax.data.examples import ExampleMaker
    from crystal_jax.data.pipeline import fitting, train_batches, validation_batches
    from crystal_jax.data.selection import selected
    from crystal_jax.model.base_memory import gigabytes
    from crystal_jax.model.lora import count_parameters
    from crystal_jax.sharding import make_mesh, rows_by_process
    from crystal_jax.train.loop import fit
    from crystal_jax.train.profiler import parse_steps
    from crystal_jax.train.sample_eval import SampleEval
    from crystal_jax.train.step import setup

    def say(line: str) -> None:
        if processes.is_first():
            print(line, file=sys.stderr)

    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["crystal-jax"])  # Grain's workers read absl flags of their own
    stated = tokenizer_config(config)
    tokenizer = load_tokenizer(stated.name, Path(stated.path) if stated.path else None)
    experiment = from_config_dict(config, vocab_size=tokenizer.vocab_size)
    if experiment.model.vocab_size < tokenizer.vocab_size:
        raise UserError(
            f"model.vocab_size={experiment.model.vocab_size} is smaller than the tokenizer's {tokenizer.vocab_size}"
        )
    profiled = parse_steps(profile_steps) if profile_steps else range(0)
    maker = ExampleMaker(tokenizer, experiment.text, experiment.task)
    directory, seq_len = Path(experiment.data.directory), experiment.data.seq_len
    records = {}
    for split in ("train", "val"):
        records[split], left_out = fitting(
            selected(open_split(directory, split), experiment.data), maker, seq_len=seq_len
        )
        say(f"{split}: {len(records[split])} crystals from {directory}, {len(left_out)} left out")
        for line in left_out[:3]:
            say(f"  left out: {line}")
    claim(workdir, experiment)
    mesh = make_mesh(experiment.mesh)
    parts = setup(experiment, mesh)
    say(
        f"{count_parameters(parts.state.params):,} parameters are trained, "
        f"{gigabytes(parts.frozen):.2f} GB are frozen; {os.fspath(workdir)}"
    )
    rows, process = rows_by_process(experiment.data.batch_size, mesh), jax.process_index()
    fit(
        experiment,
        parts,
        train_batches(records["train"], maker, experiment.data, rows=rows, process=process),
        validation_batches(
            records["val"],
            dataclasses.replace(maker, classify=True),
            experiment.data,
            limit=experiment.train.eval_batches,
            rows=rows[process],
        ),
        mesh=mesh,
        workdir=workdir,
        material_ids=[record.material_id for record in records["train"]],
        probe=SampleEval(experiment, tokenizer, mesh) if experiment.train.eval_num_samples else None,
        started=started,
        stop_after=stop_after,
        profile_steps=profiled,
    )
    return experiment
