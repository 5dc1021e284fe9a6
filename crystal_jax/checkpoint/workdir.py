"""A training run on disk: its configuration, its checkpoints, its metrics.

workdir/config.json                     the whole experiment, and what made it
workdir/checkpoints/STEP/params         what is trained (the frozen base is never written)
workdir/checkpoints/STEP/optimizer      moments, step, and what the guard remembers
workdir/checkpoints/STEP/data           position of each stream of the data
workdir/checkpoints/STEP/metrics        what was measured then, by which the best one is kept
workdir/metrics.jsonl, tensorboard/     curves
workdir/skipped.jsonl                   steps that the guard did not believe, and the crystals in them
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from crystal_jax.checkpoint.hf import HfSource, is_hf
from crystal_jax.checkpoint.layout import load
from crystal_jax.checkpoint.vocabulary import GrownSource
from crystal_jax.config import LOSSES, UNQUANTIZED, Experiment, ModelConfig, QuantizationConfig, from_config_dict
from crystal_jax.errors import UserError
from crystal_jax.files import write_text
from crystal_jax.model.architectures import make_model
from crystal_jax.model.informed import informed
from crystal_jax.model.lora import split
from crystal_jax.model.quantize import quantize_state
from crystal_jax.provenance import provenance
from crystal_jax.sharding import abstract, tree_shardings
from crystal_jax.text.token_features import token_features
from crystal_jax.text.tokenizer import AtomCoordinateTokenizer

_CONFIG = "config.json"
# These decide what the numbers in a checkpoint mean, so a resumed run must agree on them.
_FIXED = ("model", "lora", "text", "tokenizer", "base", "quantize")


def claim(workdir: Path, experiment: Experiment) -> None:
    """Makes the workdir this experiment's, or checks that it already is.

    All processes of a run look at it, so that all of them stop where it is another's; then the first one writes.

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
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("workdir seen")
    content = {
        "experiment": dataclasses.asdict(experiment),
        "provenance": provenance(("jax", "flax", "optax", "orbax-checkpoint", "grain")),
    }
    if jax.process_index() == 0:
        write_text(path, json.dumps(content, indent=2) + "\n")


def _difference(theirs: Any, ours: Any) -> str:
    if not isinstance(theirs, dict):
        return f"{theirs!r} there, {ours!r} here"
    keys = [key for key in theirs | ours if theirs.get(key) != ours.get(key)]
    if "architecture" in keys:  # then other fields are not comparable
        keys = ["architecture"]
    return "; ".join(f"{key}={theirs.get(key)!r} there, {ours.get(key)!r} here" for key in keys)


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


def open_checkpoints(workdir: Path, *, keep: int | None = None, best: str = "val_loss") -> ocp.CheckpointManager:
    """The checkpoints of a workdir, to be written to: the last `keep` ones are kept, and the one that is `best`.

    What a killed process left half-written is removed.
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
    """The checkpoints of a workdir whose run may still be writing."""
    options = ocp.CheckpointManagerOptions(read_only=True, best_fn=_rank(read_experiment(workdir).train.best))
    return ocp.CheckpointManager((workdir / "checkpoints").absolute(), options=options)


def _rank(best: str) -> Callable[[Mapping[str, float]], float]:
    """More is better: of losses the negative. A checkpoint that was not measured comes last."""
    sign = -1 if best in LOSSES else 1
    return lambda measured: sign * measured[best] if best in measured else float("-inf")


def best_step(workdir: Path) -> int:
    """The step of the checkpoint that the run's `train.best` prefers.

    Raises:
        UserError: there is no checkpoint, or none was measured.
    """
    _existing_step(workdir, None)
    best = read_experiment(workdir).train.best
    with read_checkpoints(workdir) as checkpoints:
        step = checkpoints.best_step()
        if step is None or best not in (checkpoints.metrics(step) or {}):
            raise UserError(f"{workdir} has no checkpoint with a {best}: it is never validated when saved")
    return step


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
    step = _existing_step(workdir, step)  # before the base is read, which may take long
    if experiment.lora.rank:
        graph, like, frozen = initial_parameters(experiment, mesh)
    else:  # all is in the checkpoint
        graph, like, frozen = abstract_parameters(experiment, mesh)
    params, step = restore_parameters(workdir, like, step=step)
    return Trained(graph, nnx.merge_state(params, frozen), experiment, step)


def restore_parameters(workdir: Path, like: nnx.State, *, step: int | None = None) -> tuple[nnx.State, int]:
    """What a run has trained, and at which step: the last one or `step`.

    Raises:
        UserError: no such checkpoint.
    """
    step = _existing_step(workdir, step)
    with read_checkpoints(workdir) as checkpoints:
        restored = checkpoints.restore(step, args=ocp.args.Composite(params=ocp.args.StandardRestore(like)))
    return restored.params, step


def _existing_step(workdir: Path, step: int | None) -> int:
    if not (workdir / "checkpoints").is_dir():
        raise UserError(f"{workdir} has no checkpoint yet")
    with read_checkpoints(workdir) as checkpoints:
        steps = sorted(checkpoints.all_steps())
    if not steps:
        raise UserError(f"{workdir} has no checkpoint yet")
    if step is not None and step not in steps:
        raise UserError(f"{workdir} has no checkpoint of step {step}; there are: {', '.join(map(str, steps))}")
    return steps[-1] if step is None else step


def abstract_parameters(
    experiment: Experiment, mesh: Mesh, quantization: QuantizationConfig = UNQUANTIZED
) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """The model's graph, and shapes, types and shardings of its trainable and frozen parameters; nothing is built."""
    graph, *states = nnx.eval_shape(lambda: _build(experiment, jax.random.key(0), quantization))
    params, frozen = abstract(tuple(states), tree_shardings(tuple(states), mesh))
    return graph, params, frozen


def initial_parameters(experiment: Experiment, mesh: Mesh) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """The model before training, built where it will live: graph, trainable and frozen parameters.

    The base comes from `experiment.base`, and from the seed where there is none. Under adapters it is frozen, and
    `experiment.quantize` says how it is kept; without adapters it is what training begins with.
    """
    graph, *like = abstract_parameters(experiment, mesh)
    if experiment.base and not experiment.lora.rank:
        return graph, _base_parameters(experiment, like[0], mesh), like[1]
    where = jax.tree.map(lambda leaf: leaf.sharding, tuple(like))
    # What the base brings is not drawn first: XLA leaves out what is not returned.
    wanted = slice(0, 1) if experiment.base else slice(0, 2)
    build = jax.jit(lambda key: _build(experiment, key)[1:][wanted], out_shardings=where[wanted])
    built = build(jax.random.key(experiment.train.seed))
    frozen = _base_parameters(experiment, like[1], mesh) if experiment.base else built[1]
    if experiment.quantize.kind != "none":
        graph, _, like_frozen = abstract_parameters(experiment, mesh, experiment.quantize)
        where_frozen = jax.tree.map(lambda leaf: leaf.sharding, like_frozen)
        frozen = quantize_state(frozen, experiment.quantize, where=where_frozen, donate=True)
    return graph, built[0], frozen


def _build(
    experiment: Experiment, key: jax.Array, quantization: QuantizationConfig = UNQUANTIZED
) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    model = make_model(experiment.model, experiment.lora, experiment.execution, quantization, rngs=nnx.Rngs(key))
    if share := experiment.train.token_features:
        features = token_features(AtomCoordinateTokenizer())
        model.embedding[...] = informed(model.embedding[...], features, share, jax.random.fold_in(key, 0))
    return split(model, experiment.lora)


def _base_parameters(experiment: Experiment, like: nnx.State, mesh: Mesh) -> nnx.State:
    """The weights to start from: of a Hugging Face folder, shard by shard, or of the workdir of another run."""
    path = Path(experiment.base)
    if is_hf(path):
        return load(base_source(path, experiment.model), like)
    base = load_trained(path, mesh)
    if base.experiment.lora.rank:
        raise UserError(f"base {path} has adapters of its own; merge them into it first: crystal-jax convert --to=hf")
    _check_equal(path, base.experiment.model, experiment.model)
    if (base.experiment.text, base.experiment.tokenizer.name) != (experiment.text, experiment.tokenizer.name):
        raise UserError(f"base {path} was trained on another text format or tokenizer")
    return jax.tree.map(lambda ours, to: jax.device_put(ours.astype(to.dtype), to.sharding), base.params, like)


def base_source(path: Path, cfg: ModelConfig) -> HfSource | GrownSource:
    """A Hugging Face folder as the base of a model of this architecture, which may have a larger vocabulary.

    Raises:
        UserError: they differ in more than that and the type they compute in.
    """
    source = HfSource(path)
    _check_equal(
        path, dataclasses.replace(source.config, vocab_size=max(source.config.vocab_size, cfg.vocab_size)), cfg
    )
    return GrownSource(source, cfg.vocab_size) if cfg.vocab_size > source.config.vocab_size else source


def _check_equal(path: Path, theirs: ModelConfig, ours: ModelConfig) -> None:
    there, here = (dataclasses.asdict(dataclasses.replace(cfg, dtype="float32")) for cfg in (theirs, ours))
    if there != here:
        raise UserError(f"base {path} is another model: {_difference(there, here)}")
