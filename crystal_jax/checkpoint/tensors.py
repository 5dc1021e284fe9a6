"""Interface of LLaMA checkpoints as tensors with Hugging Face's names and axes, which all conversions use.

Every format is read as a `Source`, one tensor at a time, and written from one, so a conversion holds a few tensors in
memory, never a complete model. This module does not import JAX.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from crystal_jax.config import LlamaConfig
from crystal_jax.errors import UserError

Shape = tuple[int, ...]


class Source(Protocol):
    """Checkpoint on disk. Reading a tensor must not keep a reference to it: the caller decides how many are alive.

    Attributes:
        path: path for error messages.
        config: architecture of the model; its `dtype` is that of the stored tensors if the format states it.
    """

    path: Path
    config: LlamaConfig

    def shapes(self) -> Mapping[str, Shape]:
        """Returns every tensor's Hugging Face name and shape, as stored on disk, without reading tensors."""
        ...

    def read(self, name: str) -> np.ndarray:
        """Reads a tensor in Hugging Face's axes and row order (float32, float16 or ml_dtypes.bfloat16)."""
        ...


def expected_shapes(cfg: LlamaConfig) -> dict[str, Shape]:
    """Returns names and shapes of all tensors of an architecture, in the order in which `transformers` writes them."""
    d, f = cfg.embed_dim, cfg.mlp_dim
    q, kv = cfg.num_heads * cfg.head_dim, cfg.num_kv_heads * cfg.head_dim
    block = {
        "input_layernorm": (d,),
        "mlp.down_proj": (d, f),
        "mlp.gate_proj": (f, d),
        "mlp.up_proj": (f, d),
        "post_attention_layernorm": (d,),
        "self_attn.k_proj": (kv, d),
        "self_attn.o_proj": (d, q),
        "self_attn.q_proj": (q, d),
        "self_attn.v_proj": (kv, d),
    }
    shapes: dict[str, Shape] = {"model.embed_tokens.weight": (cfg.vocab_size, d)}
    for i in range(cfg.num_layers):
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in block.items()}
    shapes["model.norm.weight"] = (d,)
    if not cfg.tie_embeddings:
        shapes["lm_head.weight"] = (cfg.vocab_size, d)
    return shapes


def check(path: Path, found: Mapping[str, Shape], cfg: LlamaConfig) -> None:
    """Compares the tensors of a checkpoint with those of its architecture; see `compare`."""
    compare(path, found, expected_shapes(cfg))


def compare(path: Path, found: Mapping[str, Shape], expected: Mapping[str, Shape]) -> None:
    """Compares the tensors of a checkpoint with the expected ones, in both directions.

    Raises:
        UserError: a tensor is missing, unknown, or of another shape; the message names it.
    """
    for what, names in (
        ("lacks", [name for name in expected if name not in found]),
        ("has unknown", [name for name in found if name not in expected]),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(f"{path} {what} tensor {names[0]}{more}")
    for name, shape in expected.items():
        if tuple(found[name]) != shape:
            raise UserError(f"{path}: tensor {name} has shape {tuple(found[name])}, its config asks for {shape}")


def stream(source: Source, dtype: np.dtype | None = None) -> Iterator[tuple[str, np.ndarray]]:
    """Yields all tensors of a source in the order of `expected_shapes`, after a check; casts to `dtype` if given."""
    check(source.path, source.shapes(), source.config)
    for name, shape in expected_shapes(source.config).items():
        tensor = source.read(name)
        if tensor.shape != shape:
            raise UserError(f"{source.path}: tensor {name} has shape {tensor.shape}, its header says {shape}")
        yield name, tensor if dtype is None else tensor.astype(dtype, copy=False)


def unpermute(rows: np.ndarray, heads: int) -> np.ndarray:
    """Reorders the rows of q or k from Hugging Face's order to Meta's: halves of each head become interleaved pairs.

    RoPE rotates the pair (i, i + h/2) of a head in Hugging Face's order and (2i, 2i + 1) in Meta's; `rows` is [heads ·
    h, ...].
    """
    split = rows.reshape(heads, 2, -1, *rows.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(rows.shape)


def permute(rows: np.ndarray, heads: int) -> np.ndarray:
    """Reorders rows from Meta's order to Hugging Face's; the inverse of `unpermute`."""
    split = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(rows.shape)


def heads_of(name: str, cfg: LlamaConfig) -> int:
    """Returns the number of heads for tensors whose row order differs between Hugging Face and Meta (q and k),
    otherwise 0.
    """
    if ".q_proj." in name:
        return cfg.num_heads
    return cfg.num_kv_heads if ".k_proj." in name else 0
