"""Maps tensors between Hugging Face's layout, [outputs, inputs] per layer, and this model's, [layer, inputs…,
outputs…].
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from flax import nnx

from crystal_jax.checkpoint.tensors import Shape, check, expected_shapes
from crystal_jax.config import LlamaConfig, input_axes

# Hugging Face's tensor name by parameter path of `Llama`; {} is the layer.
NAMES = {
    "embedding": "model.embed_tokens.weight",
    "lm_head": "lm_head.weight",
    "final_norm/scale": "model.norm.weight",
    "blocks/attn_norm/scale": "model.layers.{}.input_layernorm.weight",
    "blocks/mlp_norm/scale": "model.layers.{}.post_attention_layernorm.weight",
    "blocks/q/kernel": "model.layers.{}.self_attn.q_proj.weight",
    "blocks/k/kernel": "model.layers.{}.self_attn.k_proj.weight",
    "blocks/v/kernel": "model.layers.{}.self_attn.v_proj.weight",
    "blocks/o/kernel": "model.layers.{}.self_attn.o_proj.weight",
    "blocks/gate/kernel": "model.layers.{}.mlp.gate_proj.weight",
    "blocks/up/kernel": "model.layers.{}.mlp.up_proj.weight",
    "blocks/down/kernel": "model.layers.{}.mlp.down_proj.weight",
}


class PartSource(Protocol):
    """Source that `load` needs: `HfSource`, or a source that modifies it."""

    path: Path
    config: LlamaConfig

    @property
    def dtype(self) -> np.dtype: ...
    def shapes(self) -> dict[str, Shape]: ...
    def read_part(self, name: str, *where: slice) -> np.ndarray: ...


class Axes(NamedTuple):
    """Groups of a parameter's axes: [layer]? inputs… outputs…; the tensor has them as [outputs, inputs]."""

    stacked: bool
    inputs: int
    outputs: int


def axes_of(path: str, ndim: int) -> Axes:
    """Returns the groups of a parameter's axes. A vector has only outputs; the embedding is stored untransposed."""
    stacked = path.startswith("blocks/")
    rest = ndim - stacked
    if rest == 1 or path == "embedding":
        return Axes(stacked, 0, rest)
    inputs = input_axes(path.split("/")[1]) if stacked else 1
    return Axes(stacked, inputs, rest - inputs)


class StateSource:
    """A model's parameters as Hugging Face tensors; only the tensor that is read is copied."""

    def __init__(self, state: nnx.State, config: LlamaConfig, path: Path = Path()):
        self.path, self.config = path, config
        self._leaves = leaves_by_path(state)
        self._places: dict[str, tuple[str, int]] = {}
        for name in self._leaves:
            layers = range(config.num_layers) if name.startswith("blocks/") else (0,)
            self._places |= {NAMES[name].format(i): (name, i) for i in layers}

    def shapes(self) -> dict[str, Shape]:
        expected = expected_shapes(self.config)
        return {name: expected.get(name, ()) for name in self._places}

    def read(self, name: str) -> np.ndarray:
        path, layer = self._places[name]
        leaf = self._leaves[path]
        axes = axes_of(path, leaf.ndim)
        array = np.asarray(leaf[layer] if axes.stacked else leaf)
        return to_tensor(array, axes)


def leaves_by_path(state: Any) -> dict[str, Any]:
    """Returns the arrays of a state by path, in the notation of the sharding table."""
    return {path_of(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]}


def path_of(key_path: tuple[Any, ...]) -> str:
    """Returns a leaf's path, such as "blocks/q/kernel"."""
    return jax.tree_util.keystr(key_path, simple=True, separator="/").removesuffix("/value")


def to_tensor(array: np.ndarray, axes: Axes) -> np.ndarray:
    """Converts [inputs…, outputs…] to [outputs, inputs]."""
    if not axes.inputs:
        return array
    fan_in = math.prod(array.shape[: axes.inputs])
    return np.ascontiguousarray(array.reshape(fan_in, -1).T)


def load(source: PartSource, like: nnx.State) -> nnx.State:
    """Loads a checkpoint onto the mesh: see `load_each`."""
    return nnx.from_flat_state(dict(load_each(source, like)))


def load_each(source: PartSource, like: nnx.State) -> Iterator[tuple[tuple[Any, ...], nnx.Variable]]:
    """Loads the parameters one by one; each device reads its own shard, and no array is ever complete in memory.

    Args:
        source: a checkpoint whose tensors can be read in parts.
        like: abstract or concrete arrays with the required shapes, types and shardings.

    Raises:
        UserError: the checkpoint lacks a tensor, or has an unknown or misshapen one.
    """
    check(source.path, source.shapes(), source.config)
    for place, variable in nnx.to_flat_state(like):
        yield place, variable.replace(load_one(source, "/".join(map(str, place)), variable.get_value()))


def load_one(source: PartSource, path: str, leaf: Any) -> jax.Array:
    """Loads one parameter of a checked source, with the shape, type and sharding of `leaf`."""
    axes = axes_of(path, leaf.ndim)

    def shard(where: tuple[slice, ...] | None) -> np.ndarray:
        return _read_shard(source, path, leaf.shape, axes, where or ()).astype(leaf.dtype, copy=False)

    return jax.make_array_from_callback(leaf.shape, leaf.sharding, shard)


def _read_shard(source: PartSource, path: str, shape: Shape, axes: Axes, where: tuple[slice, ...]) -> np.ndarray:
    bounds = [range(*part.indices(size)) for part, size in zip(where, shape, strict=True)]
    layers, rest = (bounds[0], bounds[1:]) if axes.stacked else (range(1), bounds)
    sizes = shape[1:] if axes.stacked else shape
    if path == "embedding":
        return source.read_part(NAMES[path], *(slice(r.start, r.stop) for r in rest))
    rows = _flat(rest[axes.inputs :], sizes[axes.inputs :])
    columns = [_flat(rest[: axes.inputs], sizes[: axes.inputs])] if axes.inputs else []
    block = np.empty((len(layers), *(len(r) for r in rest)), source.dtype)
    for target, layer in zip(block, layers, strict=True):
        target[...] = source.read_part(NAMES[path].format(layer), rows, *columns).T.reshape(target.shape)
    return block if axes.stacked else block[0]


def _flat(bounds: list[range], sizes: Shape) -> slice:
    """Returns the slice of a flattened group of axes; only its first axis, the heads, is ever sharded."""
    inner = math.prod(sizes[1:])
    assert all(len(r) == size for r, size in zip(bounds[1:], sizes[1:], strict=True)), "a head is never split"
    return slice(bounds[0].start * inner, bounds[0].stop * inner)
