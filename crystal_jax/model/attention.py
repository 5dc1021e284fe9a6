"""Softmax attention with its gradient written out."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from crystal_jax.model.kv_cache import QuantizedKV


def attend(
    q: Float[Array, "b t n h"],
    keys: Float[Array, "b k s h"],
    values: Float[Array, "b k s h"],
    mask: Bool[Array, "#b 1 t s"],
) -> Float[Array, "b t n h"]:
    """Softmax attention; the g = n/k query heads of a group share a key head, and nothing is repeated in memory.

    Each query must see at least one key.
    """
    return _ungroup(_mix(_group(q, keys.shape[1]), keys, values, mask[:, :, None]))


def attend_cached(
    q: Float[Array, "b t n h"],
    keys: Float[Array, "b k h s"] | QuantizedKV,
    values: Float[Array, "b k s h"] | QuantizedKV,
    mask: Bool[Array, "b 1 t s"],
) -> Float[Array, "b t n h"]:
    """As `attend`, with the keys' positions last, as a layer's cache has them on CPU; it has no gradient of its own."""
    q = _group(q, jax.tree.leaves(keys)[0].shape[1])
    b, k, g, t, h = q.shape
    # The g heads of a group and the t tokens are the rows of one product.
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
    """As `attend`, with the axes of a GPU's cache; it has no gradient of its own.

    Args:
        q: Queries of new tokens.
        keys: What is cached, the new tokens included.
        values: As `keys`.
        mask: Which positions each token sees; none from `length` on.
        length: Positions that any token of a row sees: the fused kernel reads no more.
        fused: Attend by cuDNN's kernel, if it can (`fits_cudnn`).
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
    """As `attend_positions`, over codes [b, s, k, h] with scales [b, s, k]."""
    q = _group(q, keys.codes.shape[2])
    keys, values = (part._replace(scales=part.scales.swapaxes(1, 2)) for part in (keys, values))
    scores = jnp.where(mask[:, :, None], _scores("bkgth,bskh->bkgts", q, keys), -jnp.inf)
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    total = weights.sum(axis=-1, keepdims=True)
    return _ungroup((_mixture("bkgts,bskh->bkgth", weights, values, q.dtype) / total).astype(q.dtype))


def attend_packed(
    q: Float[Array, "b t n h"], k: Float[Array, "b t k h"], v: Float[Array, "b t k h"], mask: Bool[Array, "b 1 t t"]
) -> Float[Array, "b t n h"]:
    """As `attend`, of packed rows by cuDNN's kernel and its gradient; `mask` is causal.

    The [t, t] weights never leave the chip. Attention between the crystals of a row is masked, not skipped.
    """
    return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=True, implementation="cudnn")


def fits_cudnn(q: Float[Array, "b t n h"]) -> bool:
    """Whether cuDNN's attention takes queries of this type and size (jax._src.cudnn: H <= 128 before Hopper)."""
    return q.dtype in (jnp.bfloat16, jnp.float16) and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128


class Past(NamedTuple):
    """What was read before.

    Attributes:
        keys, values: Of any positions; `QuantizedKV`, they are rounded.
        filled: Which of them are to be attended to.
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
    """As `attend`, over the past and the keys given: one softmax over both, without an array that holds both."""
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
    """Products of queries and keys; coded ones are multiplied as codes, and the result by their scales."""
    if not isinstance(keys, QuantizedKV):
        return jnp.einsum(axes, q, keys, preferred_element_type=jnp.float32)
    scores = jnp.einsum(axes, q, keys.codes.astype(q.dtype), preferred_element_type=jnp.float32)
    return scores * _expand_scales(keys.scales, scores)


def _mixture(axes: str, weights: Array, values: Array | QuantizedKV, dtype: jnp.dtype) -> Float[Array, "b k ... h"]:
    """Values mixed by weights; where they are coded, the weights take their scales along."""
    if isinstance(values, QuantizedKV):
        weights, values = weights * _expand_scales(values.scales, weights), values.codes
    return jnp.einsum(axes, weights.astype(dtype), values.astype(dtype), preferred_element_type=jnp.float32)


def _expand_scales(scales: Float[Array, "b k s"], of: Array) -> Array:
    """Scales, broadcast to [b, k, ..., s]."""
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
    """softmax(q · keys) · values, over the keys that the mask lets through.

    The gradient is FlashAttention's (Dao et al., arXiv:2205.14135, algorithm 4) without its tiles: of the [t, s] arrays
    only the weights are kept, and each is passed over once. Differentiated by JAX, the same formula takes twice the
    time on CPU.
    """
    return _forward(q, keys, values, mask)[0]


def _forward(q: Array, keys: Array, values: Array, mask: Array) -> tuple[Array, tuple[Array, ...]]:
    scores = jnp.einsum("bkgth,bksh->bkgts", q, keys, preferred_element_type=jnp.float32)
    scores = jnp.where(mask, scores, -jnp.inf)
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    total = weights.sum(axis=-1, keepdims=True)
    weights = weights.astype(values.dtype)
    # Divided after the values are mixed: [t, h] is smaller than [t, s].
    mixed = jnp.einsum("bkgts,bksh->bkgth", weights, values, preferred_element_type=jnp.float32) / total
    mixed = mixed.astype(q.dtype)
    return mixed, (q, keys, values, weights, total, mixed)


def _backward(residuals: tuple[Array, ...], gradient: Array) -> tuple[Array, Array, Array, None]:
    q, keys, values, weights, total, mixed = residuals
    wide = gradient / total
    # What each weight's gradient loses through the sum that it is divided by.
    shared = (wide * mixed).sum(axis=-1, keepdims=True)
    narrow = wide.astype(values.dtype)
    d_values = jnp.einsum("bkgts,bkgth->bksh", weights, narrow)
    d_weights = jnp.einsum("bkgth,bksh->bkgts", narrow, values, preferred_element_type=jnp.float32)
    d_scores = (weights * (d_weights - shared)).astype(keys.dtype)
    d_q = jnp.einsum("bkgts,bksh->bkgth", d_scores, keys)
    d_keys = jnp.einsum("bkgts,bkgth->bksh", d_scores, q)
    return d_q, d_keys, d_values, None


_mix.defvjp(_forward, _backward)
