"""Loads models from a run's workdir, an exported folder, or the package.

An exported folder is a Hugging Face model (`checkpoint/formats/hf.py`) with an additional `crystal_jax.json`, which
holds what transformers does not need: the experiment of the model, and so its tokenizer and text format.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from crystal_jax.checkpoint.formats.hf import HfSource, is_hf
from crystal_jax.checkpoint.formats.quantized import QuantizedSource, is_quantized_base, load_quantized
from crystal_jax.checkpoint.layout import PartSource, load, load_each
from crystal_jax.checkpoint.pretrained import locate
from crystal_jax.checkpoint.resize_vocab import GrownSource
from crystal_jax.checkpoint.workdir import best_step, difference, parse_experiment, read_experiment, restore_parameters
from crystal_jax.config import UNQUANTIZED, Experiment, ModelConfig, QuantizationConfig
from crystal_jax.errors import UserError
from crystal_jax.json_files import JsonObject
from crystal_jax.model.architectures import make_model
from crystal_jax.model.feature_init import feature_init
from crystal_jax.model.frozen_base.lora import split
from crystal_jax.model.frozen_base.quantize import quantize_each
from crystal_jax.provenance import provenance
from crystal_jax.sharding import abstract, tree_shardings
from crystal_jax.storage.files import write_text
from crystal_jax.text.token_features import token_features
from crystal_jax.text.tokenizer import AtomCoordinateTokenizer

_EXPORTED = "crystal_jax.json"
_TOKENIZER_FILES = {"llama2": "tokenizer.model", "huggingface": "tokenizer.json"}


class Trained(NamedTuple):
    """Trained model, ready for use: `nnx.merge(graph, params)`.

    Attributes:
        graph, params: graph definition and parameters of the model.
        experiment: configuration of its training run.
        step: training step.
        name: name of the model, for outputs.
    """

    graph: nnx.GraphDef
    params: nnx.State
    experiment: Experiment
    step: int
    name: str


def load_for_inference(checkpoint: str | Path, mesh: Mesh, *, step: int | Literal["best"] | None = None) -> Trained:
    """Loads a model as `load_trained` does, with parameters in the types for inference: see `in_model_dtype`."""
    path = locate(checkpoint)
    if is_hf(path):
        return _load_exported(path, mesh, step=step, for_inference=True)
    trained = load_trained(path, mesh, step=step)
    return trained._replace(params=in_model_dtype(trained.params, trained.experiment.model))


def load_trained(checkpoint: str | Path, mesh: Mesh, *, step: int | Literal["best"] | None = None) -> Trained:
    """Loads a model onto the mesh.

    Args:
        checkpoint: the workdir of a run, an exported folder, or the name of a released model.
        mesh: mesh for the parameters.
        step: step of a workdir's checkpoint, or "best"; by default the last step.

    Raises:
        UserError: the model or the checkpoint does not exist.
    """
    path = locate(checkpoint)
    if is_hf(path):
        return _load_exported(path, mesh, step=step)
    experiment = read_experiment(path)
    graph, like, frozen = abstract_parameters(experiment, mesh, experiment.quantize)
    # Restored before the base, because loading the base may take long.
    params, step = restore_parameters(path, like, step=best_step(path) if step == "best" else step)
    if experiment.lora.rank:
        frozen = initial_parameters(experiment, mesh)[2]
    return Trained(graph, nnx.merge_state(params, frozen), experiment, step, f"{path.resolve().name}-step{step}")


def _load_exported(path: Path, mesh: Mesh, *, step: int | str | None, for_inference: bool = False) -> Trained:
    if step is not None:
        raise UserError(f"{path} is an exported model, which has no steps to choose from; leave out --step")
    experiment, facts = _read_exported(path)
    _check_equal(path, HfSource(path).config, experiment.model)
    graph, like, _ = abstract_parameters(experiment, mesh)
    if for_inference:
        like = in_model_dtype(like, experiment.model)
    return Trained(graph, load(HfSource(path), like), experiment, facts.integer("step", least=0), path.resolve().name)


def in_model_dtype(params: nnx.State, cfg: ModelConfig) -> nnx.State:
    """Casts the matrices of a model that is not trained further to the type of its computation.

    A bfloat16 model that was trained fully, or whose adapters were merged, has float32 parameters and rounds them at
    every use. Rounded once, they need half the memory, and a decode step reads half as much; the results are the same.
    Norms, and scales of quantised kernels, stay float32 because they are used in float32.

    Args:
        params: arrays, or abstract arrays with shapes, types and shardings.
        cfg: configuration of the model.
    """

    def narrow(path: tuple[Any, ...], leaf: Any) -> Any:
        name = jax.tree_util.keystr(path)
        if "norm" in name or "scales" in name or leaf.dtype != jnp.float32:
            return leaf
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(leaf.shape, cfg.dtype, sharding=leaf.sharding)
        return leaf.astype(cfg.dtype)

    return jax.tree_util.tree_map_with_path(narrow, params)


def describe(checkpoint: str | Path) -> Experiment:
    """Returns the configuration of a model's training run, without loading the model.

    Raises:
        UserError: the model does not exist.
    """
    path = locate(checkpoint)
    return _read_exported(path)[0] if is_hf(path) else read_experiment(path)


def _read_exported(path: Path) -> tuple[Experiment, JsonObject]:
    if not (path / _EXPORTED).is_file():
        raise UserError(
            f"{path} has no {_EXPORTED}, which says what tokenizer and text format the model was trained on; "
            f"make a workdir of it: crystal-jax convert --from=hf --to=crystal_jax --config=… --input={path}"
        )
    experiment, facts = parse_experiment(path / _EXPORTED)
    file = path / _TOKENIZER_FILES.get(experiment.tokenizer.name, "")
    if file.is_file():  # replaces the path at training time
        experiment = dataclasses.replace(
            experiment, tokenizer=dataclasses.replace(experiment.tokenizer, path=str(file))
        )
    return experiment, facts


def write_exported(path: Path, experiment: Experiment, *, step: int) -> None:
    """Writes `crystal_jax.json` to a folder that contains a run's model with merged adapters."""
    # Absolute paths are only useful on the machine of the run.
    data = dataclasses.replace(experiment.data, directory="/".join(Path(experiment.data.directory).parts[-2:]))
    tokenizer = dataclasses.replace(experiment.tokenizer, path="")
    lora = dataclasses.replace(experiment.lora, rank=0)
    alone = dataclasses.replace(experiment, base="", lora=lora, quantize=UNQUANTIZED, data=data, tokenizer=tokenizer)
    content = {
        "experiment": dataclasses.asdict(alone),
        "step": step,
        "provenance": provenance(("jax", "flax", "optax", "orbax-checkpoint", "grain")),
    }
    write_text(path / _EXPORTED, json.dumps(content, indent=2) + "\n")


def abstract_parameters(
    experiment: Experiment, mesh: Mesh, quantization: QuantizationConfig = UNQUANTIZED
) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """Returns the model's graph, and shapes, types and shardings of its trainable and frozen parameters, without
    building arrays.
    """
    graph, *states = nnx.eval_shape(lambda: _build(experiment, jax.random.key(0), quantization))
    params, frozen = abstract(tuple(states), tree_shardings(tuple(states), mesh))
    return graph, params, frozen


def initial_parameters(experiment: Experiment, mesh: Mesh) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """Builds the model before training on its devices; returns graph, trainable and frozen parameters.

    Parameters come from `experiment.base`, except adapters, or from the seed if there is no base. With adapters,
    `experiment.quantize` decides how the frozen parameters are stored.
    """
    graph, *like = abstract_parameters(experiment, mesh)
    lora = experiment.lora.rank > 0
    packed = _quantized_base(experiment)
    if experiment.base and not lora:
        return graph, nnx.from_flat_state(dict(_each_of_base(experiment, like[0], mesh))), like[1]
    where = jax.tree.map(lambda leaf: leaf.sharding, tuple(like))
    # Parameters of the base are not initialised first: XLA removes computations whose results are not returned.
    wanted = slice(0, 1) if experiment.base else slice(0, 2)
    build = jax.jit(lambda key: _build(experiment, key)[1:][wanted], out_shardings=where[wanted])
    built = build(jax.random.key(experiment.train.seed))
    if packed is not None:
        graph, _, like_frozen = abstract_parameters(experiment, mesh, experiment.quantize)
        return graph, built[0], load_quantized(packed, like_frozen)
    frozen = _each_of_base(experiment, like[1], mesh) if experiment.base else nnx.to_flat_state(built[1])
    if experiment.quantize.kind == "none":
        return graph, built[0], nnx.from_flat_state(dict(frozen))
    # One by one, because a base may fit in memory only when quantised.
    graph, _, like_frozen = abstract_parameters(experiment, mesh, experiment.quantize)
    where_frozen = jax.tree.map(lambda leaf: leaf.sharding, like_frozen)
    return graph, built[0], quantize_each(frozen, experiment.quantize, where=where_frozen, donate=True)


def _build(
    experiment: Experiment, key: jax.Array, quantization: QuantizationConfig = UNQUANTIZED
) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    model = make_model(experiment.model, experiment.lora, experiment.execution, quantization, rngs=nnx.Rngs(key))
    if share := experiment.train.token_features:
        features = token_features(AtomCoordinateTokenizer())
        model.embedding[...] = feature_init(model.embedding[...], features, share, jax.random.fold_in(key, 0))
    return split(model, experiment.lora)


def _each_of_base(
    experiment: Experiment, like: nnx.State, mesh: Mesh
) -> Iterable[tuple[tuple[Any, ...], nnx.Variable]]:
    """Yields the initial weights: from a Hugging Face folder, shard by shard, or from the workdir of another run."""
    path = locate(experiment.base)
    if not is_hf(path):
        base = load_trained(path, mesh)
        if base.experiment.lora.rank:
            raise UserError(
                f"base {path} has adapters of its own; merge them into it first: crystal-jax convert --to=hf"
            )
        _check_equal(path, base.experiment.model, experiment.model)
        _check_language(path, base.experiment, experiment)
        put = jax.tree.map(lambda ours, to: jax.device_put(ours.astype(to.dtype), to.sharding), base.params, like)
        return nnx.to_flat_state(put)
    if (path / _EXPORTED).is_file():
        _check_language(path, _read_exported(path)[0], experiment)
    return load_each(base_source(path, experiment.model), like)


def _quantized_base(experiment: Experiment) -> PartSource | None:
    """Returns the base of a run if it is stored quantised, otherwise None.

    Raises:
        UserError: the run's quantization differs from the stored one.
    """
    if not experiment.base or not is_quantized_base(path := locate(experiment.base)):
        return None
    source = QuantizedSource(path)
    kept, wanted = source.quantization, experiment.quantize
    if kept.kind != wanted.kind or (kept.kind != "int8" and kept.block_size != wanted.block_size):
        raise UserError(
            f"base {path} is kept in {kept.kind}, its blocks are {kept.block_size} weights: say so with "
            f"--config.quantize.kind={kept.kind} --config.quantize.block_size={kept.block_size}, or give another base"
        )
    return base_of(source, experiment.model)


def base_source(path: Path, cfg: ModelConfig) -> PartSource:
    """Opens a Hugging Face folder as a base: see `base_of`."""
    return base_of(HfSource(path), cfg)


def base_of(source: PartSource, cfg: ModelConfig) -> PartSource:
    """Returns a checkpoint as the base of a model of this architecture, which may have a larger vocabulary.

    Raises:
        UserError: they differ in anything but the vocabulary size and the type of computation.
    """
    _check_equal(
        source.path, dataclasses.replace(source.config, vocab_size=max(source.config.vocab_size, cfg.vocab_size)), cfg
    )
    return GrownSource(source, cfg.vocab_size) if cfg.vocab_size > source.config.vocab_size else source


def _check_equal(path: Path, theirs: ModelConfig, ours: ModelConfig) -> None:
    there, here = (dataclasses.asdict(dataclasses.replace(cfg, dtype="float32")) for cfg in (theirs, ours))
    if there != here:
        raise UserError(f"base {path} is another model: {difference(there, here)}")


def _check_language(path: Path, theirs: Experiment, ours: Experiment) -> None:
    if (theirs.text, theirs.tokenizer.name) != (ours.text, ours.tokenizer.name):
        raise UserError(f"base {path} was trained on another text format or tokenizer")
