"""Workdir of a training run: its configuration, checkpoints and metrics.

workdir/config.json                     the complete experiment, and its provenance
workdir/checkpoints/STEP/params         trained parameters (the frozen base is never written)
workdir/checkpoints/STEP/optimizer      optimizer moments, step, and loss-spike statistics
workdir/checkpoints/STEP/data           position of each data stream
workdir/checkpoints/STEP/metrics        metrics at this step, which decide the best checkpoint
workdir/metrics.jsonl, tensorboard/     training curves
workdir/skipped.jsonl                   steps skipped as loss spikes, and the crystals in them
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import nnx
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from crystal_jax.config import LOSSES, Experiment, from_config_dict
from crystal_jax.errors import UserError
from crystal_jax.json_files import JsonObject, read_object
from crystal_jax.provenance import provenance
from crystal_jax.storage.files import is_new, write_text

_CONFIG = "config.json"
_REASON = 160  # characters of an error that a message quotes
# These sections define the meaning of a checkpoint's arrays, so they must be equal when a run is resumed.
_FIXED = ("model", "lora", "text", "tokenizer", "base", "quantize")


def claim(workdir: Path, experiment: Experiment) -> None:
    """Claims the workdir for this experiment, or checks that it belongs to it.

    All processes of a run check it, so that all of them stop if it belongs to another run; then the first process
    writes.

    Raises:
        UserError: the workdir holds a run of another model; the message names the difference.
    """
    path = workdir / _CONFIG
    if path.exists():
        theirs = dataclasses.asdict(read_experiment(workdir))
        ours = dataclasses.asdict(experiment)
        for section in _FIXED:
            if theirs[section] != ours[section]:
                raise UserError(
                    f"{workdir} holds a run with another {section}: {difference(theirs[section], ours[section])}; "
                    "choose another --workdir"
                )
    elif not is_new(workdir):
        raise UserError(f"{workdir} is not empty and holds no {_CONFIG}; choose an empty or a new --workdir")
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("workdir seen")
    content = {
        "experiment": dataclasses.asdict(experiment),
        "provenance": provenance(("jax", "flax", "optax", "orbax-checkpoint", "grain")),
    }
    if jax.process_index() == 0:
        write_text(path, json.dumps(content, indent=2) + "\n")


def difference(theirs: Any, ours: Any) -> str:
    """Describes the difference between two values, or two sections of a configuration."""
    if not isinstance(theirs, dict):
        return f"{theirs!r} there, {ours!r} here"
    keys = [key for key in theirs | ours if theirs.get(key) != ours.get(key)]
    if "architecture" in keys:  # other fields are not comparable then
        keys = ["architecture"]
    return "; ".join(f"{key}={theirs.get(key)!r} there, {ours.get(key)!r} here" for key in keys)


def read_experiment(workdir: Path) -> Experiment:
    """Reads the configuration of a workdir.

    Raises:
        UserError: the folder is not a workdir.
    """
    path = workdir / _CONFIG
    if not path.is_file():
        raise UserError(f"{workdir} is no training workdir: it has no {_CONFIG}")
    return parse_experiment(path)[0]


def parse_experiment(path: Path) -> tuple[Experiment, JsonObject]:
    """Reads a file; returns its experiment and its complete content.

    Raises:
        UserError: the file is damaged.
    """
    content = read_object(path)
    try:
        return from_config_dict(content.part("experiment").content, vocab_size=0), content
    except UserError as error:
        raise UserError(f"{path} is damaged: {error}") from error


def open_checkpoints(workdir: Path, *, keep: int | None = None, best: str = "val_loss") -> ocp.CheckpointManager:
    """Opens a workdir's checkpoints for writing. The last `keep` checkpoints and the best one by the metric `best` are
    kept.

    Half-written checkpoints of killed processes are removed.
    """
    policies = [LatestN(keep), BestN(get_metric_fn=_rank(best), n=1, keep_checkpoints_without_metrics=False)]
    options = ocp.CheckpointManagerOptions(
        preservation_policy=AnyPreservationPolicy(policies),
        best_fn=_rank(best),
        create=True,
        cleanup_tmp_directories=True,
    )
    return ocp.CheckpointManager((workdir / "checkpoints").absolute(), options=options)


def read_checkpoints(workdir: Path) -> ocp.CheckpointManager:
    """Opens a workdir's checkpoints for reading; its run may still be writing."""
    options = ocp.CheckpointManagerOptions(read_only=True, best_fn=_rank(read_experiment(workdir).train.best_metric))
    return ocp.CheckpointManager((workdir / "checkpoints").absolute(), options=options)


def _rank(best: str) -> Callable[[Mapping[str, float]], float]:
    """Returns a score of checkpoints, higher is better: the metric, negated for losses; -inf if it was not measured."""
    sign = -1 if best in LOSSES else 1
    return lambda measured: sign * measured[best] if best in measured else float("-inf")


def best_step(workdir: Path) -> int:
    """Returns the step of the best checkpoint by the run's `train.best_metric`.

    Raises:
        UserError: there is no checkpoint, or none with this metric.
    """
    existing_step(workdir, None)
    best = read_experiment(workdir).train.best_metric
    with read_checkpoints(workdir) as checkpoints:
        try:
            step = checkpoints.best_step()
            measured = {} if step is None else checkpoints.metrics(step) or {}
        except Exception as error:  # Orbax raises many types of errors on damaged files
            raise UserError(
                f"{workdir}: what was measured at a checkpoint is damaged ({_reason(error)}); give --step=STEP instead "
                f"of the best one; there are: {', '.join(map(str, checkpoints.all_steps()))}"
            ) from error
        if best not in measured:
            raise UserError(f"{workdir} has no checkpoint with a {best}: it is never validated when saved")
    return step


def restore_parameters(workdir: Path, like: nnx.State, *, step: int | None = None) -> tuple[nnx.State, int]:
    """Restores a run's trained parameters at the last step or `step`; returns them with the step.

    Raises:
        UserError: the checkpoint does not exist.
    """
    step = existing_step(workdir, step)
    with read_checkpoints(workdir) as checkpoints:
        restored = restore(checkpoints, step, params=ocp.args.StandardRestore(like))
    return restored.params, step


def restore(checkpoints: ocp.CheckpointManager, step: int, **items: ocp.args.CheckpointArgs) -> Any:
    """Restores items of a checkpoint.

    Raises:
        UserError: the checkpoint is damaged; the message names it and the other checkpoints.
    """
    try:
        return checkpoints.restore(step, args=ocp.args.Composite(**items))
    except Exception as error:  # Orbax and TensorStore raise many types of errors on damaged files
        others = ", ".join(str(other) for other in sorted(checkpoints.all_steps()) if other != step)
        raise UserError(
            f"{Path(checkpoints.directory) / str(step)} cannot be read ({_reason(error)}); if it is damaged, delete "
            f"the folder and use another checkpoint; there are: {others or 'none'}"
        ) from error


def _reason(error: Exception) -> str:
    """Returns the first line of an error, which may have hundreds of lines."""
    text = " ".join((str(error).strip().splitlines() or [""])[0].split()) or type(error).__name__
    return text if len(text) <= _REASON else f"{text[:_REASON]}…"


def existing_step(workdir: Path, step: int | None) -> int:
    """Returns the step of the last checkpoint, or `step` if a checkpoint of it exists.

    Raises:
        UserError: the checkpoint does not exist.
    """
    if not (workdir / "checkpoints").is_dir():
        raise UserError(f"{workdir} has no checkpoint yet")
    with read_checkpoints(workdir) as checkpoints:
        steps = sorted(checkpoints.all_steps())
    if not steps:
        raise UserError(f"{workdir} has no checkpoint yet")
    if step is not None and step not in steps:
        raise UserError(f"{workdir} has no checkpoint of step {step}; there are: {', '.join(map(str, steps))}")
    return steps[-1] if step is None else step
