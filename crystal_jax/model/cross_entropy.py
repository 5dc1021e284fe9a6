"""Cross-entropy of the positions with nonzero weight, without the logits of all positions in memory at once."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal
from jaxtyping import Array, Float, Int


def chunked_cross_entropy(
    x: Float[Array, "b t d"],
    head: Float[Array, "d v"],
    targets: Int[Array, "b t"],
    weights: Float[Array, "b t"],
    *,
    chunk: int,
) -> Float[Array, ""]:
    """Returns the weighted sum of the cross-entropy, in nats, of the logits `x · head`.

    The positions of each row are sorted, those with nonzero weight first, and processed in chunks; a chunk whose
    weights are zero in all rows is skipped. Prompts and padding are most of a row of LLaMA-2's tokens, and with its
    vocabulary, the output projection is most of the arithmetic of a small model. Sorting is within rows, so no data
    moves between devices.

    Args:
        x: Hidden states after the last norm.
        head: Output projection; it is cast to x's dtype, and the logits are float32.
        targets: Token ids.
        weights: Weight of each target; 0 excludes it.
        chunk: Positions of a row that are processed together; it divides t.

    Raises:
        ValueError: `chunk` does not divide t.
    """
    if x.shape[1] % chunk:
        raise ValueError(f"chunks of {chunk} places do not divide rows of {x.shape[1]}")
    return _total(chunk, x, head, targets, weights)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _total(chunk: int, x: Array, head: Array, targets: Array, weights: Array) -> Array:
    return _pass(chunk, x, head, targets, weights, gradients=False, of_head=False)[0]


def _pass(
    chunk: int, x: Array, head: Array, targets: Array, weights: Array, *, gradients: bool, of_head: bool
) -> tuple[Array, Array | None, Array | None]:
    """Returns the loss and its gradients from one pass over the logits; recomputing them would cost another product."""
    b, t, d = x.shape
    order = jnp.argsort(weights == 0, axis=1, stable=True)

    def chunked(values: Array) -> Array:
        return values.reshape(b, t // chunk, chunk, *values.shape[2:]).swapaxes(0, 1)

    picked = jnp.take_along_axis(x, order[..., None], axis=1)
    sorted_targets, sorted_weights = (jnp.take_along_axis(v, order, axis=1) for v in (targets, weights))
    narrow = head.astype(x.dtype)

    def counted(sums: tuple, x: Array, targets: Array, weights: Array) -> tuple[tuple, Array | None]:
        total, d_head = sums
        logits = jnp.einsum("btd,dv->btv", x, narrow, preferred_element_type=jnp.float32)
        scale = jax.nn.logsumexp(logits, axis=-1)
        hit = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        total += (weights * (scale - hit)).sum()
        if not gradients:
            return (total, d_head), None
        miss = jnp.exp(logits - scale[..., None]) - jax.nn.one_hot(targets, logits.shape[-1])
        miss = (weights[..., None] * miss).astype(x.dtype)
        if of_head:
            d_head += jnp.einsum("btd,btv->dv", x, miss, preferred_element_type=jnp.float32)
        return (total, d_head), jnp.einsum("btv,dv->btd", miss, narrow)

    def one(sums: tuple, piece: tuple) -> tuple[tuple, Array | None]:
        def nothing(sums: tuple, x: Array, *_: Any) -> tuple[tuple, Array | None]:
            return sums, jnp.zeros_like(x) if gradients else None

        return jax.lax.cond((piece[2] != 0).any(), counted, nothing, sums, *piece)

    begin: tuple = jnp.zeros(()), jnp.zeros(head.shape) if of_head else None
    pieces: tuple = chunked(picked), chunked(sorted_targets), chunked(sorted_weights)
    (total, d_head), d_pieces = jax.lax.scan(one, begin, pieces)
    if d_pieces is None:
        return total, None, d_head
    d_picked = d_pieces.swapaxes(0, 1).reshape(b, t, d)
    return total, jnp.take_along_axis(d_picked, jnp.argsort(order, axis=1)[..., None], axis=1), d_head


def _forward(chunk: int, *primals: CustomVJPPrimal) -> tuple[Array, tuple[Any, ...]]:
    x, head, targets, weights = (primal.value for primal in primals)
    # A frozen head needs no gradient, which is a third of the arithmetic.
    total, d_x, d_head = _pass(chunk, x, head, targets, weights, gradients=True, of_head=primals[1].perturbed)
    return total, (d_x, None if d_head is None else d_head.astype(head.dtype))


def _backward(chunk: int, residuals: tuple[Any, ...], gradient: Array) -> tuple[Any, ...]:
    d_x, d_head = residuals
    scaled = (gradient * d_x).astype(d_x.dtype)
    return scaled, None if d_head is None else (gradient * d_head).astype(d_head.dtype), None, None


_total.defvjp(_forward, _backward, symbolic_zeros=True)
