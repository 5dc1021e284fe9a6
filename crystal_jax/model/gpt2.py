"""GPT-2 in Flax NNX (Radford et al., 2019): learned positions, layer norms, GELU, biases, tied embedding.

Axis letters are those of model/layers.py. Of GPT-2's kinds of dropout, only `resid_pdrop` exists (`Dropout.rate`).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from crystal_jax.config import (
    UNQUANTIZED,
    ExecutionConfig,
    Gpt2Config,
    LoraConfig,
    QuantizationConfig,
)
from crystal_jax.model.layers import Dropout, Projection, projecting
from crystal_jax.model.transformer import Attention, Transformer


class LayerNorm(nnx.Module):
    """Layer norm, (x - mean x) / √(var x + ε) · scale + bias, in float32 for any model dtype (Ba et al., 2016)."""

    def __init__(self, cfg: Gpt2Config, lora: LoraConfig):
        self.eps = cfg.norm_eps
        dtype = cfg.dtype if lora.rank else jnp.float32
        self.scale = nnx.Param(jnp.ones(cfg.embed_dim, dtype))
        self.bias = nnx.Param(jnp.zeros(cfg.embed_dim, dtype))

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        wide = x.astype(jnp.float32)
        centred = wide - wide.mean(axis=-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + self.eps)
        return (normed * self.scale[...] + self.bias[...]).astype(x.dtype)


class Gpt2Block(nnx.Module):
    """A decoder block: attention and MLP, each with a norm before it and a residual connection."""

    def __init__(
        self, cfg: Gpt2Config, lora: LoraConfig, quantization: QuantizationConfig, *, flat: bool, rngs: nnx.Rngs
    ):
        def projection(name: str, equation: str) -> Projection:
            adapted = name in lora.targets
            return Projection(equation, cfg, lora, quantization, adapted=adapted, biased=True, flat=flat, rngs=rngs)

        self.attn_norm = LayerNorm(cfg, lora)
        self.q = projection("q", "btd,dnh->btnh")
        self.k = projection("k", "btd,dkh->btkh")
        self.v = projection("v", "btd,dkh->btkh")
        self.o = projection("o", "btnh,nhd->btd")
        self.mlp_norm = LayerNorm(cfg, lora)
        self.up = projection("up", "btd,df->btf")
        self.down = projection("down", "btf,fd->btd")

    def __call__(
        self,
        x: Float[Array, "b t d"],
        angles: None,
        attention: Attention,
        dropout: Dropout | None = None,
    ) -> tuple[Float[Array, "b t d"], tuple[Any, Any]]:
        """Returns the new x, and the keys and values that `attention` returns for the cache."""
        project = projecting(self, dropout)
        y = self.attn_norm(x)
        mixed, kept = attention(project("q", y), project("k", y), project("v", y))
        x = x + project("o", mixed)
        hidden = jax.nn.gelu(project("up", self.mlp_norm(x)), approximate=True)
        return x + project("down", hidden), kept


class Gpt2(Transformer):
    """GPT-2, with learned position embeddings that are added to the token embeddings."""

    block, norm = Gpt2Block, LayerNorm
    cfg: Gpt2Config

    def __init__(
        self,
        cfg: Gpt2Config,
        lora: LoraConfig,
        execution: ExecutionConfig,
        quantization: QuantizationConfig = UNQUANTIZED,
        *,
        rngs: nnx.Rngs,
    ):
        super().__init__(cfg, lora, execution, quantization, rngs=rngs)
        init = nnx.initializers.normal(cfg.embed_dim**-0.5)
        param_dtype = cfg.dtype if lora.rank else jnp.float32
        self.position_embedding = nnx.Param(init(rngs.params(), (cfg.num_positions, cfg.embed_dim), param_dtype))

    def _embed(self, tokens: Int[Array, "b t"], positions: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        """Returns the sum of both embeddings; positions beyond the last, which only padding has, are clipped."""
        places = self.position_embedding[...].at[positions].get(mode="clip")
        return super()._embed(tokens, positions) + places.astype(self.cfg.dtype)

    def _angles(self, positions: Int[Array, "b t"]) -> Any:
        return None
