"""Draws tokens from the model's probabilities, and rejects draws that violate constraints."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key


def draw(
    keys: Key[Array, " b"], logits: Float[Array, "b k"], temperature: Float[Array, " b"], top_p: Float[Array, " b"]
) -> Int[Array, " b"]:
    """Returns the column drawn in each row; a column whose logit is -inf is never drawn.

    Logits are divided by the temperature; temperature 0 takes the most likely column. Columns are drawn from the
    smallest set that holds the share `top_p` of the probability (nucleus sampling, Holtzman et al., arXiv:1904.09751).
    One uniform number per row is looked up in the cumulative distribution; Gumbel noise would take one per column.
    """
    greedy = temperature == 0
    probabilities = jax.nn.softmax(logits / jnp.where(greedy, 1, temperature)[:, None], axis=-1)
    outside = jax.lax.cond(
        (top_p < 1).any(), _outside_nucleus, lambda p, _: jnp.zeros(p.shape, bool), probabilities, top_p[:, None]
    )
    probabilities = jnp.where(outside, 0.0, probabilities)
    cumulative = jnp.cumsum(probabilities, axis=-1)
    threshold = jax.vmap(jax.random.uniform)(keys)[:, None] * cumulative[:, -1:]
    # Cumulative sums are rounded: alone, they could select a forbidden column, or one past the last.
    reached = (cumulative > threshold) & (probabilities > 0)
    likeliest = logits.argmax(axis=-1)
    return jnp.where(reached.any(axis=-1) & ~greedy, reached.argmax(axis=-1), likeliest)


def _outside_nucleus(probabilities: Float[Array, "b k"], top_p: Float[Array, "b 1"]) -> Bool[Array, "b k"]:
    """Returns True for columns outside the nucleus: the more likely columns already hold the share `top_p`."""
    ordered = jnp.sort(probabilities, axis=-1, descending=True)
    before = jnp.cumsum(ordered, axis=-1) - ordered
    smallest = jnp.where(before < top_p, ordered, jnp.inf).min(axis=-1, keepdims=True)
    return probabilities < smallest


def violates_limits(
    keys: Key[Array, " b"],
    logits: Float[Array, "b k"],
    limited: Float[Array, "b k"],
    temperature: Float[Array, " b"],
) -> Bool[Array, " b"]:
    """Returns True where rejection sampling rejects: the model's own draw violates the constraints.

    `logits` are masked by the grammar, `limited` by the grammar and the constraints. Where the result is False, `draw`
    from `limited` gives the model's own draw. Sequences that are never rejected therefore follow the model's
    distribution conditioned on the constraints; sequences on which masks enforce the constraints do not (Park et al.,
    arXiv:2405.21047).
    """
    heat = jnp.where(temperature == 0, 1, temperature)[:, None]
    kept = jax.nn.logsumexp(limited / heat, axis=-1) - jax.nn.logsumexp(logits / heat, axis=-1)
    others = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1)))(keys)
    return others > jnp.exp(kept)
