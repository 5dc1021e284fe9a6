"""A training run on disk: its configuration, its checkpoints, its metrics.

workdir/config.json                     the whole experiment, and what made it
workdir/checkpoints/STEP/params         what is trained (the frozen base is never written)
workdir/checkpoints/STEP/optimizer      moments and step
workdir/checkpoints/STEP/data           position of the data iterator
workdir/metrics.jsonl, tensorboard/     curves
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import Mesh

from crystal_jax.config import Experiment, from_config_dict
from crystal_jax.errors import UserError
from crystal_jax.files import write_text
from crystal_jax.model.llama import Llama
from crystal_jax.model.lora import split
from crystal_jax.provenance import provenance
from crystal_jax.sharding import tree_shardings

_CONFIG = "config.json"
# These decide what the numbers in a checkpoint mean, so a resumed run must agree on them.
_FIXED = ("model", "lora", "text", "tokenizer", "base")


def claim(workdir: Path, experiment: Experiment) -> None:
    """Makes the workdir this experiment's, or checks that it already is.

    Raises:
        UserError: the workdir holds another model's run; the message names what differs.
    """
    path = workdir / _CONFIG
    if path.exists():
        theirs = dataclasses.asdict(read_experiment(workdir))
        ours = dataclasses.asdict(experiment)
        for section in _FIXED:
            if theirs[section] != ours[section]:
                raise UserError(
                    f"{workdir} holds a run with another {section}: {_difference(theirs[section], ours[section])}; "
                    "choose another --workdir"
                )
    elif workdir.exists() and any(workdir.iterdir()):
        raise UserError(f"{workdir} is not empty and holds no {_CONFIG}; choose an empty or a new --workdir")
    content = {
        "experiment": dataclasses.asdict(experiment),
        "provenance": provenance(("jax", "flax", "optax", "orbax-checkpoint", "grain")),
    }
    write_text(path, json.dumps(content, indent=2) + "\n")


def _difference(theirs: Any, ours: Any) -> str:
    if not isinstance(theirs, dict):
        return f"{theirs!r} there, {ours!r} here"
    rows = (f"{key}={theirs[key]!r} there, {ours[key]!r} here" for key in theirs if theirs[key] != ours[key])
    return "; ".join(rows)


def read_experiment(workdir: Path) -> Experiment:
    """The configuration that a workdir was made with.

    Raises:
        UserError: it is no workdir.
    """
    path = workdir / _CONFIG
    if not path.is_file():
        raise UserError(f"{workdir} is no training workdir: it has no {_CONFIG}")
    try:
        content = json.loads(path.read_text())["experiment"]
    except (json.JSONDecodeError, KeyError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    return from_config_dict(content, vocab_size=0)


def open_checkpoints(workdir: Path, *, keep: int | None = None) -> ocp.CheckpointManager:
    """The checkpoints of a workdir; the last `keep` ones are kept."""
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, cleanup_tmp_directories=True)
    return ocp.CheckpointManager((workdir / "checkpoints").absolute(), options=options)


class Trained(NamedTuple):
    """A model ready for use: `nnx.merge(graph, params)`."""

    graph: nnx.GraphDef
    params: nnx.State
    experiment: Experiment
    step: int


def load_trained(workdir: Path, mesh: Mesh, *, step: int | None = None) -> Trained:
    """Reads the model of a workdir, from its last checkpoint or that of `step`.

    Raises:
        UserError: no such workdir or checkpoint.
    """
    experiment = read_experiment(workdir)
    with open_checkpoints(workdir) as checkpoints:
        steps = sorted(checkpoints.all_steps())
        if not steps:
            raise UserError(f"{workdir} has no checkpoint yet")
        if step is not None and step not in steps:
            raise UserError(f"{workdir} has no checkpoint of step {step}; there are: {', '.join(map(str, steps))}")
        step = steps[-1] if step is None else step
        graph, abstract, frozen = initial_parameters(experiment, mesh)
        restored = checkpoints.restore(step, args=ocp.args.Composite(params=ocp.args.StandardRestore(abstract)))
    return Trained(graph, nnx.merge_state(restored.params, frozen), experiment, step)


def initial_parameters(experiment: Experiment, mesh: Mesh) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """The model before training, built where it will live: graph, trainable and frozen parameters.

    The frozen base comes from `experiment.base`, and from the seed where there is none.
    """

    def build(key: jax.Array) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
        model = Llama(experiment.model, experiment.lora, experiment.execution, rngs=nnx.Rngs(key))
        return split(model, experiment.lora)

    key = jax.random.key(experiment.train.seed)
    graph, *abstract = nnx.eval_shape(build, key)
    where = tree_shardings(tuple(abstract), mesh)
    params, frozen = jax.jit(lambda key: build(key)[1:], out_shardings=where)(key)
    if experiment.base:
        frozen = _base_parameters(experiment, frozen, mesh)
    return graph, params, frozen


def _base_parameters(experiment: Experiment, like: nnx.State, mesh: Mesh) -> nnx.State:
    base = load_trained(Path(experiment.base), mesh)
    if base.experiment.lora.rank:
        raise UserError(f"base {experiment.base} has adapters of its own; merge them into it first")
    ignored = {"dtype"}
    ours, theirs = (
        {k: v for k, v in dataclasses.asdict(e.model).items() if k not in ignored}
        for e in (experiment, base.experiment)
    )
    if ours != theirs:
        raise UserError(f"base {experiment.base} is another model: {_difference(theirs, ours)}")
    if (base.experiment.text, base.experiment.tokenizer.name) != (experiment.text, experiment.tokenizer.name):
        raise UserError(f"base {experiment.base} was trained on another text format or tokenizer")
    return jax.tree.map(lambda ours, to: jax.device_put(ours.astype(to.dtype), to.sharding), base.params, like)
