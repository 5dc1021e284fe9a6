"""Softmax attention, with an explicit gradient for training."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from crystal_jax.model.attention.kv_cache import QuantizedKV


def attend(
    q: Float[Array, "b t n h"],
    keys: Float[Array, "b k s h"],
    values: Float[Array, "b k s h"],
    mask: Bool[Array, "#b 1 t s"],
) -> Float[Array, "b t n h"]:
    """Returns softmax attention of queries over keys and values.

    The g = n/k query heads of a group share one key head, which is not repeated in memory. Each query must see at least
    one key.
    """
    return _ungroup(_mix(_group(q, keys.shape[1]), keys, values, mask[:, :, None]))


def attend_cached(
    q: Float[Array, "b t n h"],
    keys: Float[Array, "b k h s"] | QuantizedKV,
    values: Float[Array, "b k s h"] | QuantizedKV,
    mask: Bool[Array, "b 1 t s"],
) -> Float[Array, "b t n h"]:
    """Returns attention over a layer's cache on CPU, where keys have their positions last; it has no explicit gradient.

    `mask` is as in `attend`.
    """
    q = _group(q, jax.tree.leaves(keys)[0].shape[1])
    b, k, g, t, h = q.shape
    # The g heads of a group and the t tokens form the rows of one matrix product.
    scores = _scores("bkqh,bkhs->bkqs", q.reshape(b, k, g * t, h), keys)
    scores = jnp.where(mask[:, :, None], scores.reshape(b, k, g, t, -1), -jnp.inf).reshape(scores.shape)
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    total = weights.sum(axis=-1, keepdims=True)
    mixed = _mixture("bkqs,bksh->bkqh", weights, values, q.dtype) / total
    return _ungroup(mixed.astype(q.dtype).reshape(q.shape))


def attend_positions(
    q: Float[Array, "b t n h"],
    keys: Float[Array, "b s k h"] | QuantizedKV,
    values: Float[Array, "b s k h"] | QuantizedKV,
    mask: Bool[Array, "b 1 t s"],
    length: Int[Array, " b"],
    *,
    fused: bool,
) -> Float[Array, "b t n h"]:
    """Returns attention over a layer's cache on GPU; it has no explicit gradient.

    Args:
        q: Queries of the new tokens.
        keys: Cached keys, those of the new tokens included.
        values: Cached values, those of the new tokens included.
        mask: Positions that each token sees; none from `length` on.
        length: Positions that any token of a row sees; the fused kernel reads no more.
        fused: Use cuDNN's kernel, if it supports these queries (`fits_cudnn`).
    """
    if isinstance(keys, QuantizedKV) and isinstance(values, QuantizedKV):
        return _attend_coded(q, keys, values, mask)
    assert not isinstance(keys, QuantizedKV)
    assert not isinstance(values, QuantizedKV)
    kernel: Any = dict(key_value_seq_lengths=length, implementation="cudnn") if fused and fits_cudnn(q) else {}
    return jax.nn.dot_product_attention(q, keys, values, mask=mask, **kernel)


def _attend_coded(
    q: Float[Array, "b t n h"], keys: QuantizedKV, values: QuantizedKV, mask: Bool[Array, "b 1 t s"]
) -> Float[Array, "b t n h"]:
    """Returns the attention of `attend_positions` over 8-bit codes [b, s, k, h] with scales [b, s, k]."""
    q = _group(q, keys.codes.shape[2])
    keys, values = (part._replace(scales=part.scales.swapaxes(1, 2)) for part in (keys, values))
    scores = jnp.where(mask[:, :, None], _scores("bkgth,bskh->bkgts", q, keys), -jnp.inf)
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    total = weights.sum(axis=-1, keepdims=True)
    return _ungroup((_mixture("bkgts,bskh->bkgth", weights, values, q.dtype) / total).astype(q.dtype))


def attend_packed(
    q: Float[Array, "b t n h"], k: Float[Array, "b t k h"], v: Float[Array, "b t k h"], mask: Bool[Array, "b 1 t t"]
) -> Float[Array, "b t n h"]:
    """Returns causal attention within packed rows, by cuDNN's kernel and its gradient.

    The [t, t] weights are never written to GPU memory. Attention between the crystals of a row is masked, not skipped.
    `mask` must be causal.
    """
    return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=True, implementation="cudnn")


def fits_cudnn(q: Float[Array, "b t n h"]) -> bool:
    """Whether cuDNN's attention supports this dtype and head dimension (jax._src.cudnn: H <= 128 before Hopper)."""
    return q.dtype in (jnp.bfloat16, jnp.float16) and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128


class Past(NamedTuple):
    """The cached keys and values of earlier tokens.

    Attributes:
        keys, values: Keys and values of the cached positions, possibly in 8 bits (`QuantizedKV`).
        filled: Positions to attend to.
    """

    keys: Float[Array, "b k s h"] | QuantizedKV
    values: Float[Array, "b k s h"] | QuantizedKV
    filled: Bool[Array, "b 1 1 s"]


def attend_after(
    past: Past,
    q: Float[Array, "b t n h"],
    keys: Float[Array, "b k t h"],
    values: Float[Array, "b k t h"],
    mask: Bool[Array, "#b 1 t t"],
) -> Float[Array, "b t n h"]:
    """Returns attention over the past and over the keys given.

    One softmax covers both parts, without an array that holds both.
    """
    q = _group(q, keys.shape[1])
    parts: tuple[Any, ...] = ((past.keys, past.values, past.filled), (keys, values, mask))
    scores = [jnp.where(mask[:, :, None], _scores("bkgth,bksh->bkgts", q, k), -jnp.inf) for k, _, mask in parts]
    top = jnp.maximum(*(part.max(axis=-1, keepdims=True) for part in scores))
    weights = [jnp.exp(part - top) for part in scores]
    mixed = jnp.add(
        *(_mixture("bkgts,bksh->bkgth", part, v, q.dtype) for part, (_, v, _) in zip(weights, parts, strict=True))
    )
    total = jnp.add(*(part.sum(axis=-1, keepdims=True) for part in weights))
    return _ungroup((mixed / total).astype(q.dtype))


def _scores(axes: str, q: Array, keys: Array | QuantizedKV) -> Float[Array, "b k ... s"]:
    """Returns products of queries and keys; codes are multiplied as they are, and the products by their scales."""
    if not isinstance(keys, QuantizedKV):
        return jnp.einsum(axes, q, keys, preferred_element_type=jnp.float32)
    scores = jnp.einsum(axes, q, keys.codes.astype(q.dtype), preferred_element_type=jnp.float32)
    return scores * _expand_scales(keys.scales, scores)


def _mixture(axes: str, weights: Array, values: Array | QuantizedKV, dtype: jnp.dtype) -> Float[Array, "b k ... h"]:
    """Returns values summed with weights; the scales of coded values are multiplied into the weights."""
    if isinstance(values, QuantizedKV):
        weights, values = weights * _expand_scales(values.scales, weights), values.codes
    return jnp.einsum(axes, weights.astype(dtype), values.astype(dtype), preferred_element_type=jnp.float32)


def _expand_scales(scales: Float[Array, "b k s"], of: Array) -> Array:
    """Returns scales broadcast to [b, k, ..., s]."""
    return scales.reshape(*scales.shape[:2], *(1,) * (of.ndim - 3), -1)


def _group(q: Float[Array, "b t n h"], key_heads: int) -> Float[Array, "b k g t h"]:
    b, t, _, h = q.shape
    return (q * h**-0.5).reshape(b, t, key_heads, -1, h).transpose(0, 2, 3, 1, 4)


def _ungroup(mixed: Float[Array, "b k g t h"]) -> Float[Array, "b t n h"]:
    b, _, _, t, h = mixed.shape
    return mixed.transpose(0, 3, 1, 2, 4).reshape(b, t, -1, h)


@jax.custom_vjp
def _mix(
    q: Float[Array, "b k g t h"],
    keys: Float[Array, "b k s h"],
    values: Float[Array, "b k s h"],
    mask: Bool[Array, "#b 1 1 t s"],
) -> Float[Array, "b k g t h"]:
    """Returns softmax(q · keys) · values, over the keys that the mask allows.

    The gradient is FlashAttention's (Dao et al., arXiv:2205.14135, algorithm 4) without tiling: of the [t, s] arrays,
    only the weights are stored, and each array is read once. With JAX's automatic gradient, the same formula takes
    twice the time on CPU.
    """
    return _forward(q, keys, values, mask)[0]


def _forward(q: Array, keys: Array, values: Array, mask: Array) -> tuple[Array, tuple[Array, ...]]:
    scores = jnp.einsum("bkgth,bksh->bkgts", q, keys, preferred_element_type=jnp.float32)
    scores = jnp.where(mask, scores, -jnp.inf)
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    total = weights.sum(axis=-1, keepdims=True)
    weights = weights.astype(values.dtype)
    # The division comes after the product with the values: [t, h] is smaller than [t, s].
    mixed = jnp.einsum("bkgts,bksh->bkgth", weights, values, preferred_element_type=jnp.float32) / total
    mixed = mixed.astype(q.dtype)
    return mixed, (q, keys, values, weights, total, mixed)


def _backward(residuals: tuple[Array, ...], gradient: Array) -> tuple[Array, Array, Array, None]:
    q, keys, values, weights, total, mixed = residuals
    wide = gradient / total
    # The term of each weight's gradient that comes from the normalisation.
    shared = (wide * mixed).sum(axis=-1, keepdims=True)
    narrow = wide.astype(values.dtype)
    d_values = jnp.einsum("bkgts,bkgth->bksh", weights, narrow)
    d_weights = jnp.einsum("bkgth,bksh->bkgts", narrow, values, preferred_element_type=jnp.float32)
    d_scores = (weights * (d_weights - shared)).astype(keys.dtype)
    d_q = jnp.einsum("bkgts,bksh->bkgth", d_scores, keys)
    d_keys = jnp.einsum("bkgts,bkgth->bksh", d_scores, q)
    return d_q, d_keys, d_values, None


_mix.defvjp(_forward, _backward)
