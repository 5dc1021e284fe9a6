"""One training run: the typed configuration, the crystals and the model, handed to the training loop."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags

from crystal_jax import processes
from crystal_jax.checkpoint.workdir import claim
from crystal_jax.config import Experiment, from_config_dict, tokenizer_config
from crystal_jax.data.examples import ExampleMaker
from crystal_jax.data.mp20 import Record, open_split
from crystal_jax.data.pipeline import fitting, train_batches, validation_batches
from crystal_jax.data.selection import selected
from crystal_jax.errors import UserError
from crystal_jax.model.frozen_base.lora import count_parameters
from crystal_jax.model.frozen_base.memory import gigabytes
from crystal_jax.sharding import make_mesh, rows_by_process
from crystal_jax.text.tokenizer import Tokenizer, load_tokenizer
from crystal_jax.train.loop import TrainingParts, fit
from crystal_jax.train.monitoring.profiler import parse_steps
from crystal_jax.train.sample_eval import SampleEval
from crystal_jax.train.step import setup

_SHOWN = 3  # crystals that are left out, named for each split


class TrainingRun:
    """A training run of one configuration.

    Attributes:
        experiment: The typed configuration.

    Raises:
        UserError: the configuration is invalid, or does not fit its tokenizer.
    """

    def __init__(self, config: Mapping[str, Any], *, profile_steps: str | None = None):
        if not flags.FLAGS.is_parsed():
            flags.FLAGS(["crystal-jax"])  # Grain's workers read absl flags of their own
        self.experiment, self._tokenizer = _typed(config)
        self._profiled = parse_steps(profile_steps) if profile_steps else range(0)
        self._maker = ExampleMaker(self._tokenizer, self.experiment.text, self.experiment.task)

    def run(self, workdir: Path, *, stop_after: int | None, started: float) -> None:
        """Trains to the last step, or to `stop_after`; resumes a workdir that holds this run.

        Args:
            workdir: Folder for checkpoints and logs.
            stop_after: Step after which to stop early, with a checkpoint.
            started: Time (s since the epoch) when the process began this run, for the goodput.

        Raises:
            UserError: data set or workdir is unusable, or a loss is not finite.
            Preempted: SIGTERM or an announcement came.
        """
        experiment = self.experiment
        train, val = (self._records(split) for split in ("train", "val"))
        claim(workdir, experiment)
        mesh = make_mesh(experiment.mesh)
        model = setup(experiment, mesh)
        _say(
            f"{count_parameters(model.state.params):,} parameters are trained, "
            f"{gigabytes(model.frozen):.2f} GB are frozen; {os.fspath(workdir)}"
        )
        rows, process = rows_by_process(experiment.data.batch_size, mesh), jax.process_index()
        parts = TrainingParts(
            experiment=experiment,
            setup=model,
            mesh=mesh,
            train_data=train_batches(train, self._maker, experiment.data, rows=rows, process=process),
            validation_data=validation_batches(
                val,
                dataclasses.replace(self._maker, classify=True),
                experiment.data,
                limit=experiment.train.eval_batches,
                rows=rows[process],
            ),
            material_ids=[record.material_id for record in train],
            probe=SampleEval(experiment, self._tokenizer, mesh) if experiment.train.eval_num_samples else None,
        )
        fit(parts, workdir, started=started, stop_after=stop_after, profile_steps=self._profiled)

    def _records(self, split: str) -> Sequence[Record]:
        """Returns the crystals of a split that fit into a row of a batch."""
        data = self.experiment.data
        directory = Path(data.directory)
        kept, left_out = fitting(selected(open_split(directory, split), data), self._maker, seq_len=data.seq_len)
        _say(f"{split}: {len(kept)} crystals from {directory}, {len(left_out)} left out")
        for line in left_out[:_SHOWN]:
            _say(f"  left out: {line}")
        return kept


def _typed(config: Mapping[str, Any]) -> tuple[Experiment, Tokenizer]:
    """Returns the typed configuration and its tokenizer, whose vocabulary is the model's if none is stated."""
    stated = tokenizer_config(config)
    tokenizer = load_tokenizer(stated.name, Path(stated.path) if stated.path else None)
    experiment = from_config_dict(config, vocab_size=tokenizer.vocab_size)
    if experiment.model.vocab_size < tokenizer.vocab_size:
        raise UserError(
            f"model.vocab_size={experiment.model.vocab_size} is smaller than the tokenizer's {tokenizer.vocab_size}"
        )
    return experiment, tokenizer


def _say(line: str) -> None:
    if processes.is_first():
        print(line, file=sys.stderr)
