"""Layers of the blocks: projections with optional LoRA adapters, dropout, and LLaMA-2's RMSNorm.

Axis letters: b batch, t query position, s key position, d embedding, n query heads, k key/value heads, h head
dimension, f hidden layer of the MLP, v vocabulary, r LoRA rank.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from crystal_jax.config import PROJECTIONS, UNQUANTIZED, LoraConfig, ModelConfig, QuantizationConfig
from crystal_jax.model.frozen_base.quantize import Quantized, dequantize, quantize


class Dropout(NamedTuple):
    """The dropout of a training step (Srivastava et al., 2014).

    Equal keys drop equal elements, whether the layers are scanned or unrolled.

    Attributes:
        key: Random key that selects the dropped elements.
        rate: Dropout rate of what a block adds to the residual stream. The rate of adapters is `LoraConfig.dropout`.
    """

    key: Array
    rate: float = 0.0


class Projection(nnx.Module):
    """A linear projection, `einsum(equation, x, kernel)`, plus `α/r · (x A) B` if it has a LoRA adapter.

    A quantised kernel is stored as `codes` and `scales`. A `biased` projection adds a bias vector.
    """

    def __init__(
        self,
        equation: str,
        cfg: ModelConfig,
        lora: LoraConfig,
        quantization: QuantizationConfig = UNQUANTIZED,
        *,
        adapted: bool,
        biased: bool = False,
        flat: bool,
        rngs: nnx.Rngs,
    ):
        x, kernel, y = re.split(",|->", equation)
        ins = "".join(axis for axis in kernel if axis in x)  # contracted axes; they come first in `kernel`
        outs = kernel.removeprefix(ins)
        size = {
            "d": cfg.embed_dim,
            "n": cfg.num_heads,
            "k": cfg.num_kv_heads,
            "h": cfg.head_dim,
            "f": cfg.mlp_dim,
        }
        shape_in, shape_out = (tuple(size[axis] for axis in axes) for axes in (ins, outs))
        fan_in = math.prod(shape_in)
        self.equation, self.flat = equation, flat
        self.dtype = jnp.dtype(cfg.dtype)
        # A frozen base is stored in its computing dtype; trained weights need float32 for small updates.
        param_dtype = self.dtype if lora.rank else jnp.float32
        # Projections that add to the residual stream start smaller, by the number of additions (GPT-2's rule).
        self.adds = outs == "d"
        damping = (2 * cfg.num_layers) ** -0.5 if self.adds else 1.0
        init = nnx.initializers.truncated_normal(damping * fan_in**-0.5)
        kernel = init(rngs.params(), (*shape_in, *shape_out), param_dtype)
        self.quantization, self.inputs = quantization, len(ins)
        if quantization.kind == "none":
            self.kernel = nnx.Param(kernel)
        else:
            self.codes, self.scales = map(nnx.Param, quantize(kernel, quantization, inputs=self.inputs))
        self.biased = biased
        if biased:
            self.bias = nnx.Param(jnp.zeros(shape_out, param_dtype))
        self.adapted = adapted and lora.rank > 0
        if self.adapted:
            # As in PEFT: A is uniform within ±1/√fan_in and B is zero, so that training starts from the base model.
            bound = fan_in**-0.5
            init_a = jax.random.uniform(rngs.params(), (*shape_in, lora.rank), minval=-bound, maxval=bound)
            self.lora_a = nnx.LoRAParam(init_a)
            self.lora_b = nnx.LoRAParam(jnp.zeros((lora.rank, *shape_out)))
            self.down, self.up = f"{x},{ins}r->btr", f"btr,r{outs}->{y}"
            self.scale, self.dropout = lora.scale, lora.dropout

    def __call__(self, x: Array, dropout: Dropout | None = None) -> Array:
        """Returns the projection of x; in training, the adapter's input passes through dropout."""
        y = self._base_product(x)
        if self.biased:
            y += self.bias[...].astype(self.dtype)
        if self.adapted:
            if dropout is not None and self.dropout:
                x = drop(x, self.dropout, dropout.key)
            low = self._product(self.down, x, self.lora_a[...])
            y += self.scale * self._product(self.up, low, self.lora_b[...])
        if self.adds and dropout is not None and dropout.rate:
            y = drop(y, dropout.rate, jax.random.fold_in(dropout.key, 0))
        return y

    def _base_product(self, x: Array) -> Array:
        if self.quantization.kind == "none":
            return self._product(self.equation, x, self.kernel[...])

        def product(x: Array, packed: Quantized) -> Array:
            kernel = dequantize(packed, self.quantization, inputs=self.inputs, dtype=self.dtype)
            return self._product(self.equation, x, kernel)

        # The gradient of x needs the kernel again. Without the checkpoint, the dequantised kernels of all layers would
        # be kept until then, and quantisation would save no memory. CSE must not undo the recomputation; within a scan
        # it cannot.
        recomputed = jax.checkpoint(product, prevent_cse=self.flat)
        return recomputed(x, Quantized(self.codes[...], self.scales[...]))

    def _product(self, equation: str, x: Array, kernel: Array) -> Array:
        """Returns `einsum(equation, x, kernel)`; when `flat`, computed as a product of two matrices.

        XLA makes transposed copies for the gradient of any other product; on CPU they cost a tenth of a step.
        """
        weights = kernel.astype(self.dtype)
        if not self.flat:
            return jnp.einsum(equation, x, weights)
        contracted = x.ndim - 2  # all axes except b and t
        fan_in, outs = math.prod(x.shape[2:]), weights.shape[contracted:]
        return (x.reshape(-1, fan_in) @ weights.reshape(fan_in, -1)).reshape(*x.shape[:2], *outs)


def projecting(block: nnx.Module, dropout: Dropout | None) -> Callable[[str, Array], Array]:
    """Returns `project(name, x)` for a block's projections; in training, each has its own dropout mask, as in PEFT."""

    def project(name: str, x: Array) -> Array:
        if dropout is None:
            return getattr(block, name)(x)
        key = jax.random.fold_in(dropout.key, PROJECTIONS.index(name))
        return getattr(block, name)(x, dropout._replace(key=key))

    return project


def drop(x: Array, rate: float, key: Array) -> Array:
    """Sets a share of x to zero, at random, and scales up the rest so that the expectation is unchanged."""
    kept = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), 0)


class RMSNorm(nnx.Module):
    """RMSNorm, x / √(mean x² + ε) · scale, in float32 for any model dtype (Zhang & Sennrich, 2019)."""

    def __init__(self, cfg: ModelConfig, lora: LoraConfig):
        self.eps = cfg.norm_eps
        self.scale = nnx.Param(jnp.ones(cfg.embed_dim, cfg.dtype if lora.rank else jnp.float32))

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        wide = x.astype(jnp.float32)
        normed = wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + self.eps)
        return (normed * self.scale[...]).astype(x.dtype)
