"""LLaMA-2 in Flax NNX (Touvron et al., arXiv:2307.09288).

Axis letters: b batch, t query position, d embedding, n query heads, k key/value heads, h head dimension, f hidden layer
of the MLP.
"""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from crystal_jax.config import LlamaConfig, LoraConfig, QuantizationConfig
from crystal_jax.model.attention.rotary import rotary, rotate
from crystal_jax.model.layers import Dropout, Projection, RMSNorm, projecting
from crystal_jax.model.transformer import Attention, Transformer


class Block(nnx.Module):
    """A decoder block: attention and MLP, each with a norm before it and a residual connection."""

    def __init__(
        self, cfg: LlamaConfig, lora: LoraConfig, quantization: QuantizationConfig, *, flat: bool, rngs: nnx.Rngs
    ):
        def projection(name: str, equation: str) -> Projection:
            adapted = name in lora.targets
            return Projection(equation, cfg, lora, quantization, adapted=adapted, flat=flat, rngs=rngs)

        self.attn_norm = RMSNorm(cfg, lora)
        self.q = projection("q", "btd,dnh->btnh")
        self.k = projection("k", "btd,dkh->btkh")
        self.v = projection("v", "btd,dkh->btkh")
        self.o = projection("o", "btnh,nhd->btd")
        self.mlp_norm = RMSNorm(cfg, lora)
        self.gate = projection("gate", "btd,df->btf")
        self.up = projection("up", "btd,df->btf")
        self.down = projection("down", "btf,fd->btd")

    def __call__(
        self,
        x: Float[Array, "b t d"],
        angles: tuple[Array, Array],
        attention: Attention,
        dropout: Dropout | None = None,
    ) -> tuple[Float[Array, "b t d"], tuple[Any, Any]]:
        """Returns the new x, and the keys and values that `attention` returns for the cache."""
        project = projecting(self, dropout)
        y = self.attn_norm(x)
        q, k, v = rotate(project("q", y), *angles), rotate(project("k", y), *angles), project("v", y)
        mixed, kept = attention(q, k, v)
        x = x + project("o", mixed)
        y = self.mlp_norm(x)
        return x + project("down", jax.nn.silu(project("gate", y)) * project("up", y)), kept


class Llama(Transformer):
    """LLaMA-2, with rotary position embedding."""

    block, norm = Block, RMSNorm
    cfg: LlamaConfig

    def _angles(self, positions: Int[Array, "b t"]) -> tuple[Array, Array]:
        return rotary(positions, head_dim=self.cfg.head_dim, theta=self.cfg.rope_theta)
