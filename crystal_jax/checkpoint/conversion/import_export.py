"""Exports trained models from a workdir to other formats, and imports models into a workdir."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

from crystal_jax.checkpoint.conversion.tokenizer_files import copy_tokenizer
from crystal_jax.checkpoint.formats.hf import HfSource, is_hf, write_hf
from crystal_jax.checkpoint.formats.peft import Adapter, MergedSource, adapter_of, read_peft, write_peft
from crystal_jax.checkpoint.formats.peft_config import EMBEDDING
from crystal_jax.checkpoint.formats.safetensors_io import SHARD_BYTES
from crystal_jax.checkpoint.layout import PartSource, StateSource, load, path_of
from crystal_jax.checkpoint.models import abstract_parameters, base_source, load_trained, write_exported
from crystal_jax.checkpoint.pretrained import locate
from crystal_jax.checkpoint.tensors import Source
from crystal_jax.checkpoint.workdir import (
    claim,
    existing_step,
    open_checkpoints,
    read_experiment,
    restore_parameters,
)
from crystal_jax.config import Experiment, LlamaConfig, MeshConfig, from_config_dict
from crystal_jax.errors import UserError
from crystal_jax.model.frozen_base.lora import merge_adapters
from crystal_jax.sharding import make_mesh
from crystal_jax.text.tokenizer import load_tokenizer

_ROUNDING = 0.05  # tolerance for the mean of a vocabulary, as a share of the standard deviation of its values
_HALF, _FLOOR = 2**-8, 1e-4  # bfloat16 tolerances: relative, and near 0 as a share of the standard deviation
_ONE_DEVICE = MeshConfig(data=1, fsdp=1, tensor=1)


def merged_source(workdir: Path, *, step: int | None = None) -> Source:
    """Returns a run's model as named tensors, with adapters merged.

    With a Hugging Face base, adapters are merged tensor by tensor into the original weights of the base, even if the
    run kept them quantised. A fully trained model is loaded completely.
    """
    experiment = read_experiment(workdir)
    base = locate(experiment.base) if experiment.base else Path()
    if experiment.lora.rank and is_hf(base):
        return MergedSource(HfSource(base), _adapter(workdir, experiment, step))
    trained = load_trained(workdir, make_mesh(_ONE_DEVICE, jax.devices()[:1]), step=step)
    state = (
        merge_adapters(trained.params, experiment.lora, experiment.quantize) if experiment.lora.rank else trained.params
    )
    return StateSource(state, _llama(experiment, workdir), workdir)


def _llama(experiment: Experiment, workdir: Path) -> LlamaConfig:
    if not isinstance(experiment.model, LlamaConfig):
        raise UserError(f"{workdir} holds a {experiment.model.architecture}; other formats are written of LLaMA's only")
    return experiment.model


def export_model(
    workdir: Path,
    source: Source,
    output: Path,
    *,
    dtype: str,
    step: int | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a run's model, `merged_source`, as a Hugging Face folder that `load_trained` can also read.

    The files of its tokenizer, if it has any, are copied.
    """
    experiment = read_experiment(workdir)
    file = experiment.tokenizer.path
    tokenizer = load_tokenizer(experiment.tokenizer.name, Path(file))
    special = tokenizer.bos_id, tokenizer.eos_id
    write_hf(output, source, dtype=dtype, special=special, shard_bytes=shard_bytes)
    if file:
        copy_tokenizer(Path(file).parent, output)
    write_exported(output, experiment, step=existing_step(workdir, step))


def export_adapter(workdir: Path, output: Path, *, step: int | None = None) -> None:
    """Writes a run's adapter in PEFT's format; the base is not read.

    Raises:
        UserError: the run has no adapter.
    """
    experiment = read_experiment(workdir)
    write_peft(output, _adapter(workdir, experiment, step), base=experiment.base)


def import_model(base: Path, adapter: Path | None, output: Path, config: Mapping[str, Any]) -> None:
    """Creates a workdir for sampling from a Hugging Face model, with an optional PEFT adapter.

    `config` is the configuration tree of `crystal-jax train`; its model and adapter sections must match the input. An
    adapter may have a vocabulary with more rows than its base, if each additional row is the mean of the old ones, as
    the reference implementation initialises its [PAD] token.

    Raises:
        UserError: config and input do not match, or the adapter has another vocabulary (merge it with --to=hf first).
    """
    source = HfSource(base)
    found = read_peft(adapter) if adapter else None
    if found is not None:
        found.check(source.config)
    resized = found.whole if found else {}
    rows = max([source.config.vocab_size, *map(len, resized.values())])
    tree = dict(config) | {"base": str(base) if adapter else ""}
    experiment = from_config_dict(tree, vocab_size=rows)
    if found is None and experiment.lora.rank:
        raise UserError(f"the config has lora.rank={experiment.lora.rank}, but {base} has no adapter; give --from=peft")
    if found is not None:
        for name in ("rank", "alpha", "rank_stabilized"):
            there, here = getattr(found.lora, name), getattr(experiment.lora, name)
            if there != here:
                raise UserError(f"{adapter} has lora.{name}={there}, the config {here}")
        if set(found.lora.targets) != set(experiment.lora.targets):
            raise UserError(f"{adapter} adapts {found.lora.targets}, the config {experiment.lora.targets}")
    parts = base_source(base, experiment.model)
    if found is not None:
        _check_vocabulary(found, parts, old_rows=source.config.vocab_size)
    _, like, _ = abstract_parameters(experiment, make_mesh(_ONE_DEVICE, jax.devices()[:1]))
    params = load(parts, like) if found is None else _place(found, source, like)
    claim(output, experiment)
    with open_checkpoints(output) as checkpoints:
        checkpoints.save(0, args=ocp.args.Composite(params=ocp.args.StandardSave(params)))


def _check_vocabulary(adapter: Adapter, base: PartSource, *, old_rows: int) -> None:
    """Checks that an adapter's vocabulary is the resized vocabulary of its base, because a run stores no vocabulary of
    its own.

    Args:
        adapter: adapter with its own embedding or head.
        base: base with the resized vocabulary.
        old_rows: number of rows that belong to the base; the other rows are their mean.

    Raises:
        UserError: a row differs.
    """
    for name, theirs in adapter.whole.items():
        stored = EMBEDDING if base.config.tie_embeddings else name
        ours = base.read_part(stored, slice(0, len(theirs)), slice(None)).astype(np.float32)
        off = np.abs(theirs.astype(np.float32) - ours)
        # The data types may differ (half and float32). The rounding error of the vocabulary's small mean is larger.
        copied = off[:old_rows] <= _HALF * np.abs(ours[:old_rows]) + _FLOOR * ours.std()
        if not copied.all() or (off[old_rows:] > _ROUNDING * ours.std()).any():
            raise UserError(
                f"{adapter.path} brings rows of {name} that are neither its base's nor their mean: merge the two "
                "first, with --to=hf"
            )


def _place(adapter: Adapter, base: HfSource, like: nnx.State) -> nnx.State:
    arrays = adapter.arrays(base.config)

    def place(path: tuple[Any, ...], leaf: Any) -> jax.Array:
        return jax.device_put(arrays[path_of(path)].astype(leaf.dtype), leaf.sharding)

    return jax.tree_util.tree_map_with_path(place, like)


def _adapter(workdir: Path, experiment: Experiment, step: int | None) -> Adapter:
    mesh = make_mesh(_ONE_DEVICE, jax.devices()[:1])
    _, like, _ = abstract_parameters(experiment, mesh)
    params, _ = restore_parameters(workdir, like, step=step)
    return adapter_of(params, experiment.lora, workdir)
