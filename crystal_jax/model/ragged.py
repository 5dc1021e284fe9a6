"""The wanted tokens of several rows side by side, so that what does not mix tokens is computed for no other.

Axis letters: b row, t token of a row, w wanted token.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int


class RaggedIndex(NamedTuple):
    """Where tokens go.

    Attributes:
        source: The place of each wanted token among the b x t.
        place: Where each of those went; that of a token that is not wanted holds another's.
    """

    source: Int[Array, " w"]
    place: Int[Array, "b t"]

    def pack(self, x: Array) -> Array:
        """[b, t, ...] to [1, w, ...]."""
        return x.reshape(-1, *x.shape[2:])[self.source][None]

    def unpack(self, x: Array) -> Array:
        """[1, w, ...] to [b, t, ...]."""
        return x[0][self.place]


def ragged_index(count: Int[Array, " b"], *, t: int, budget: int) -> RaggedIndex:
    """Of the first `count` tokens of each row, no more than `budget` in all."""
    wanted = (jnp.arange(t) < count[:, None]).reshape(-1)
    so_far = jnp.cumsum(wanted)
    # Counting is faster than a search or a scatter: these are some ten thousand comparisons.
    source = (so_far <= jnp.arange(budget)[:, None]).sum(axis=-1)
    return RaggedIndex(jnp.minimum(source, wanted.size - 1), jnp.clip(so_far - 1, 0, budget - 1).reshape(-1, t))
