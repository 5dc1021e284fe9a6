"""Reads version 0 files of llama2.c: seven integers, then unnamed float32 weights, each kind for all layers at once."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np

from crystal_jax.checkpoint.tensors import Shape, expected_shapes, heads_of, permute
from crystal_jax.config import LlamaConfig
from crystal_jax.errors import UserError

_HEADER = 7  # int32: embed_dim, mlp_dim, num_layers, num_heads, num_kv_heads, ±vocab_size, sequence length
_LATER_VERSIONS = 0x616B3432  # magic number of later versions, in place of embed_dim
_BLOCK = (
    "input_layernorm",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "post_attention_layernorm",
    "mlp.gate_proj",
    "mlp.down_proj",
    "mlp.up_proj",
)


class Llama2cSource:
    """llama2.c checkpoint of version 0; rows of q and k are in Meta's order.

    The file does not state `norm_eps` and `rope_theta`; llama2.c uses 1e-5 and 1e4.

    Raises:
        UserError: the file is missing, of a later version, or not of the length that its header requires.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            header = np.fromfile(path, "<i4", _HEADER).tolist()
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
        self.config, rope = _config(path, header)
        size = 4 * _elements(self.config, rope) + 4 * _HEADER
        if path.stat().st_size != size:
            raise UserError(f"{path} has {path.stat().st_size} bytes; its header asks for {size}")
        self._shapes = expected_shapes(self.config)
        self._offsets = _offsets(self.config, rope)

    def shapes(self) -> dict[str, Shape]:
        return self._shapes

    def read(self, name: str) -> np.ndarray:
        tensor = np.array(np.memmap(self.path, "<f4", "r", self._offsets[name], self._shapes[name]))
        heads = heads_of(name, self.config)
        return permute(tensor, heads) if heads else tensor


def _config(path: Path, header: list[int]) -> tuple[LlamaConfig, int]:
    """Returns the architecture, and the number of values in the rotary tables stored among its tensors."""
    if len(header) < _HEADER:
        raise UserError(f"{path} is no llama2.c file: it is shorter than a header")
    if header[0] == _LATER_VERSIONS:
        raise UserError(f"{path} is of a later version of llama2.c's format; only version 0 is read")
    embed_dim, mlp_dim, num_layers, num_heads, num_kv_heads, vocab_size, seq_len = header
    try:
        config = LlamaConfig(
            vocab_size=abs(vocab_size),
            embed_dim=embed_dim,
            mlp_dim=mlp_dim,
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=embed_dim // max(num_heads, 1),
            norm_eps=1e-5,
            rope_theta=10_000.0,
            tie_embeddings=vocab_size > 0,  # its sign states whether the embedding is tied
            dtype="float32",
        )
    except ValueError as error:
        raise UserError(f"{path} is no llama2.c file of version 0: {error}") from error
    return config, seq_len * config.head_dim  # a cosine and a sine per pair


def _elements(cfg: LlamaConfig, rope: int) -> int:
    """Computes the number of values in the file by arithmetic, because the header of another file may state billions of
    layers.
    """
    one, two = (
        sum(map(math.prod, expected_shapes(dataclasses.replace(cfg, num_layers=layers)).values())) for layers in (1, 2)
    )
    return one + (cfg.num_layers - 1) * (two - one) + rope


def _offsets(cfg: LlamaConfig, rope: int) -> dict[str, int]:
    """Returns the offset of each tensor, in bytes."""
    names = ["model.embed_tokens.weight"]
    names += [f"model.layers.{i}.{part}.weight" for part in _BLOCK for i in range(cfg.num_layers)]
    names += ["model.norm.weight"]
    shapes, offsets, at = expected_shapes(cfg), {}, 4 * _HEADER
    for name in names:
        offsets[name] = at
        at += 4 * math.prod(shapes[name])
    if not cfg.tie_embeddings:
        offsets["lm_head.weight"] = at + 4 * rope
    return offsets
