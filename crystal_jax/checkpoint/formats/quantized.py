"""Stores a frozen base quantised on disk: the kernels of the blocks as codes and scales.

A quantised base needs half or a quarter of the bytes on disk and when a run starts, and nothing is rounded at start. A
folder contains `quantized.json` (architecture, kind, block size) and safetensors. Tensors have Hugging Face's names and
axes, except the kernels of the blocks. Each kernel is stored as `….codes` and `….scales`, one per layer, in the axes of
`model/frozen_base/quantize.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from crystal_jax.checkpoint.formats.hf import DTYPES
from crystal_jax.checkpoint.formats.safetensors_io import SHARD_BYTES, Entry, Shards, write_shards
from crystal_jax.checkpoint.layout import NAMES, PartSource, leaves_by_path, load_one
from crystal_jax.checkpoint.tensors import Shape, Source, compare, expected_shapes, stream
from crystal_jax.config import UNQUANTIZED, LlamaConfig, QuantizationConfig, input_axes
from crystal_jax.config.check import build
from crystal_jax.errors import RequestError, UserError
from crystal_jax.json_files import read_object
from crystal_jax.model.frozen_base.memory import abstract_base
from crystal_jax.model.frozen_base.quantize import Quantized, quantize
from crystal_jax.storage.files import write_text

_STATED = "quantized.json"


def is_quantized_base(directory: Path) -> bool:
    """Whether a folder contains a base written by `write_quantized`."""
    return (directory / _STATED).is_file()


class QuantizedSource:
    """Quantised base.

    Raises:
        UserError: files are damaged, or a tensor is missing, unknown or misshapen.
    """

    def __init__(self, directory: Path):
        self.path = directory
        self.config, self.quantization = _read_stated(directory / _STATED)
        self._shards = Shards(directory)
        expected = {name: entry.shape for name, entry in _entries(self.config, self.quantization, "float32").items()}
        compare(directory, self._shards.shapes(), expected)

    @functools.cached_property
    def dtype(self) -> np.dtype:
        """Data type of the embedding, and so of all tensors that are not quantised."""
        return self.read_part("model.embed_tokens.weight", slice(0, 1)).dtype

    def shapes(self) -> dict[str, Shape]:
        """Returns the shapes of all tensors by name."""
        return self._shards.shapes()

    def read_part(self, name: str, *where: slice) -> np.ndarray:
        """Reads a rectangle of a tensor, without reading the rest of the tensor."""
        return self._shards.read_part(name, *where)


def write_quantized(
    directory: Path, source: Source, quantization: QuantizationConfig, *, dtype: str, shard_bytes: int = SHARD_BYTES
) -> None:
    """Writes a quantised model, tensor by tensor. quantized.json is written last and marks the folder as complete.

    Args:
        directory: output folder; created if it does not exist.
        source: source of the tensors.
        quantization: quantization of the kernels of the blocks.
        dtype: type of the other tensors, a key of `DTYPES`. Kernels are cast to it before they are quantised, as a run
            casts them to its `model.dtype`, so both get the same codes.
        shard_bytes: largest size of a file, unless it contains a single tensor.

    Raises:
        UserError: the source lacks a tensor or has one of another shape.
    """
    shapes = {path: leaf.shape[1:] for path, leaf in _leaves(source.config, UNQUANTIZED).items()}

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        paths = _paths(source.config)
        for name, tensor in stream(source, DTYPES[dtype]):
            path = paths[name]
            if not _is_kernel(path):
                yield name, tensor
                continue
            kernel = jnp.asarray(tensor.T.reshape(shapes[path]))
            for field, array in _quantize(kernel, quantization, input_axes(path.split("/")[1]))._asdict().items():
                yield _field_of(name, field), np.asarray(array)

    write_shards(directory, _entries(source.config, quantization, dtype), tensors(), shard_bytes=shard_bytes)
    stated = {"model": dataclasses.asdict(source.config), "quantize": dataclasses.asdict(quantization)}
    write_text(directory / _STATED, json.dumps(stated, indent=2) + "\n")


def load_quantized(source: PartSource, like: nnx.State) -> nnx.State:
    """Loads a base onto the mesh; each device reads its own shard.

    `like` has the required shapes, types and shardings, of a model with the same quantization as the source.
    """

    def load(place: tuple[Any, ...], leaf: Any) -> jax.Array:
        path = "/".join(map(str, place))
        *parent, field = path.split("/")
        if field not in Quantized._fields:
            return load_one(source, path, leaf)
        name = _field_of(NAMES["/".join([*parent, "kernel"])], field)

        def shard(where: tuple[slice, ...] | None) -> np.ndarray:
            layers, *rest = where or (slice(None),) * leaf.ndim
            return np.stack([source.read_part(name.format(i), *rest) for i in range(*layers.indices(leaf.shape[0]))])

        return jax.make_array_from_callback(leaf.shape, leaf.sharding, shard)

    flat = nnx.to_flat_state(like)
    return nnx.from_flat_state({place: leaf.replace(load(place, leaf.get_value())) for place, leaf in flat})


@functools.partial(jax.jit, static_argnums=(1, 2))
def _quantize(kernel: jax.Array, cfg: QuantizationConfig, inputs: int) -> Quantized:
    return quantize(kernel, cfg, inputs=inputs)


def _entries(cfg: LlamaConfig, quantization: QuantizationConfig, dtype: str) -> dict[str, Entry]:
    """Returns the tensors to write, in the order of `expected_shapes`."""
    leaves, paths = _leaves(cfg, quantization), _paths(cfg)
    entries: dict[str, Entry] = {}
    for name, shape in expected_shapes(cfg).items():
        if not _is_kernel(paths[name]):
            entries[name] = Entry(shape, DTYPES[dtype])
            continue
        for field in Quantized._fields:
            leaf = leaves[paths[name].removesuffix("kernel") + field]
            entries[_field_of(name, field)] = Entry(leaf.shape[1:], np.dtype(leaf.dtype))
    return entries


def _leaves(cfg: LlamaConfig, quantization: QuantizationConfig) -> dict[str, Any]:
    """Returns shapes and types of the parameters by path."""
    try:
        return leaves_by_path(abstract_base(cfg, quantization))
    except RequestError as error:  # 4-bit codes are packed in pairs
        raise UserError(str(error)) from error


def _paths(cfg: LlamaConfig) -> dict[str, str]:
    """Returns the parameter path of each tensor; a parameter holds all layers."""
    return {name.format(i): path for path, name in NAMES.items() for i in range(cfg.num_layers)}


def _is_kernel(path: str) -> bool:
    return path.startswith("blocks/") and path.endswith("/kernel")


def _field_of(name: str, field: str) -> str:
    """Returns the name of a kernel's codes or scales."""
    return name.removesuffix("weight") + field


def _read_stated(path: Path) -> tuple[LlamaConfig, QuantizationConfig]:
    stated = read_object(path)
    model, kept = stated.part("model"), stated.part("quantize")
    try:
        return build(LlamaConfig, "model", model.content), build(QuantizationConfig, "quantize", kept.content)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
