"""Reads Meta's checkpoints: params.json, and one shard consolidated.NN.pth per model-parallel rank."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from crystal_jax.checkpoint.tensors import Shape, heads_of, permute
from crystal_jax.config import LlamaConfig
from crystal_jax.errors import UserError
from crystal_jax.json_files import JsonObject, read_object

_EMBEDDING, _GATE = "tok_embeddings.weight", "layers.0.feed_forward.w1.weight"
_ROPE = "rope.freqs"  # constant of the architecture; not read
# Hugging Face's name, and the axis along which shards are concatenated (None: each shard has the whole tensor).
_NAMES: Mapping[str, tuple[str, int | None]] = {
    _EMBEDDING: ("model.embed_tokens.weight", 1),
    "norm.weight": ("model.norm.weight", None),
    "output.weight": ("lm_head.weight", 0),
}
_BLOCK: Mapping[str, tuple[str, int | None]] = {
    "attention.wq": ("self_attn.q_proj", 0),
    "attention.wk": ("self_attn.k_proj", 0),
    "attention.wv": ("self_attn.v_proj", 0),
    "attention.wo": ("self_attn.o_proj", 1),
    "feed_forward.w1": ("mlp.gate_proj", 0),
    "feed_forward.w2": ("mlp.down_proj", 1),
    "feed_forward.w3": ("mlp.up_proj", 0),
    "attention_norm": ("input_layernorm", None),
    "ffn_norm": ("post_attention_layernorm", None),
}


class MetaSource:
    """Folder as Meta distributes LLaMA-2; needs PyTorch, which memory-maps the shards.

    Rows of q and k are in Meta's order; embeddings are not tied.

    Raises:
        UserError: PyTorch or a file is missing, a shard contains anything but tensors, or the shards do not match.
    """

    def __init__(self, directory: Path):
        self.path = directory
        params = _read_params(directory / "params.json")
        shards = _open_shards(directory)
        self._files = list(shards)
        self._shapes = {key: tuple(tensor.shape) for key, tensor in shards[self._files[0]].items()}
        self.config = _config(directory, params, list(shards.values()))
        self._names = dict(_NAMES)
        for i in range(self.config.num_layers):
            for meta, (hf, axis) in _BLOCK.items():
                self._names[f"layers.{i}.{meta}.weight"] = (f"model.layers.{i}.{hf}.weight", axis)
        self._keys = {hf: meta for meta, (hf, _) in self._names.items()}

    def shapes(self) -> dict[str, Shape]:
        shapes = {}
        for key, shape in self._shapes.items():
            name, axis = self._names.get(key, (key, None))
            shapes[name] = tuple(size * len(self._files) if i == axis else size for i, size in enumerate(shape))
        return shapes

    def read(self, name: str) -> np.ndarray:
        key = self._keys[name]
        axis = self._names[key][1]
        # Opened again for each tensor, because pages of a memory map stay in memory as long as the map exists.
        parts = (np.array(_to_numpy(self.path, key, _open(file)[key])) for file in self._files)
        tensor = next(parts) if axis is None else np.concatenate(list(parts), axis)
        heads = heads_of(name, self.config)
        return permute(tensor, heads) if heads else tensor


def _config(directory: Path, params: JsonObject, shards: list[dict[str, Any]]) -> LlamaConfig:
    for key in (_EMBEDDING, _GATE):
        if key not in shards[0]:
            raise UserError(f"{directory} lacks tensor {key}")
        if shards[0][key].ndim != 2:
            raise UserError(f"{directory}: tensor {key} has {shards[0][key].ndim} axes, not 2")
    embedding, gate = shards[0][_EMBEDDING], shards[0][_GATE]
    width, stated = embedding.shape[-1] * len(shards), params.integer("dim")
    if width != stated:
        raise UserError(
            f"{directory}: {_EMBEDDING} has {width} columns in {len(shards)} consolidated.*.pth, and params.json "
            f"says {stated}; a shard is missing, or tensors are split otherwise than in LLaMA-2"
        )
    if params.get("use_scaled_rope"):
        raise params.error("use_scaled_rope is LLaMA-3's; only LLaMA-2's architecture is implemented")
    heads, rows = params.integer("n_heads", least=1), params.integer("vocab_size", -1)
    try:
        return LlamaConfig(
            vocab_size=rows if rows > 0 else embedding.shape[0],
            embed_dim=width,
            mlp_dim=gate.shape[0] * len(shards),
            num_layers=params.integer("n_layers"),
            num_heads=heads,
            num_kv_heads=params.integer("n_kv_heads", heads),
            head_dim=width // heads,
            norm_eps=params.number("norm_eps", above=0.0),
            rope_theta=params.number("rope_theta", 10_000.0, above=0.0),
            tie_embeddings=False,
            dtype="float32" if str(embedding.dtype) == "torch.float32" else "bfloat16",
        )
    except ValueError as error:
        raise UserError(f"{params.path}: {error}") from error


def _read_params(path: Path) -> JsonObject:
    if not path.is_file():
        raise UserError(f"{path.parent} is no checkpoint of Meta's: it has no {path.name}")
    return read_object(path)


def _open_shards(directory: Path) -> dict[Path, dict[str, Any]]:
    """Opens the shards in order, as memory-mapped tensors by Meta's names; all must have the same names and shapes."""
    files = sorted(directory.glob("consolidated.*.pth"))
    if not files:
        raise UserError(f"{directory} has no consolidated.00.pth")
    for i, file in enumerate(files):
        if file.name != f"consolidated.{i:02}.pth":
            raise UserError(f"{directory} lacks consolidated.{i:02}.pth; it has {file.name}")
    shards = {file: _open(file) for file in files}
    first = shards[files[0]]
    for file in files[1:]:
        for key in first.keys() | shards[file].keys():
            ours, theirs = (tuple(s[key].shape) if key in s else None for s in (first, shards[file]))
            if ours != theirs:
                raise UserError(f"{directory}: {key} is {ours} in {files[0].name}, and {theirs} in {file.name}")
    return shards


def _open(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise UserError(f"{file} is no regular file")
    try:
        import torch
    except ImportError:
        raise UserError("reading consolidated.*.pth needs PyTorch: pip install torch") from None
    try:
        # A pickle can run any code; weights_only refuses everything that tensors do not need.
        shard = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{file} is refused: its pickle holds more than tensors, or is damaged") from error
    except Exception as error:  # PyTorch's reader raises many types of errors on damaged files
        reason = next(iter(str(error).splitlines()), type(error).__name__)  # PyTorch appends a stack trace
        raise UserError(f"{file} is no readable PyTorch file: {reason}") from error
    if not isinstance(shard, dict) or not all(_is_plain(name, tensor) for name, tensor in shard.items()):
        raise UserError(f"{file} is no dictionary of tensors")
    return {key: tensor for key, tensor in shard.items() if key != _ROPE}


def _is_plain(name: Any, tensor: Any) -> bool:
    """Whether an item of a shard is a named dense tensor."""
    import torch

    return isinstance(name, str) and isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided


def _to_numpy(path: Path, key: str, tensor: Any) -> np.ndarray:
    """Returns a view of a mapped tensor; bfloat16 is passed as integers, because NumPy has no such type."""
    import torch

    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    if tensor.dtype not in (torch.float32, torch.float16):
        raise UserError(f"{path}: tensor {key} has type {tensor.dtype}; weights are float32, float16 or bfloat16")
    return tensor.numpy()
