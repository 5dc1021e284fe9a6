"""Ragged indexing: packs the real tokens of several rows, so that layers that do not mix tokens skip padding.

Axis letters: b row, t token of a row, w real token.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int


class RaggedIndex(NamedTuple):
    """Index between padded rows and packed tokens.

    Attributes:
        source: Flat index, among the b x t tokens, of each real token.
        place: Inverse index; entries of padding are arbitrary.
    """

    source: Int[Array, " w"]
    place: Int[Array, "b t"]

    def pack(self, x: Array) -> Array:
        """Returns the real tokens of [b, t, ...] as [1, w, ...]."""
        return x.reshape(-1, *x.shape[2:])[self.source][None]

    def unpack(self, x: Array) -> Array:
        """Returns packed tokens [1, w, ...] as [b, t, ...]; padding holds copies of other tokens."""
        return x[0][self.place]


def ragged_index(count: Int[Array, " b"], *, t: int, budget: int) -> RaggedIndex:
    """Returns the index of the first `count` tokens of each row; `budget` bounds their total number."""
    wanted = (jnp.arange(t) < count[:, None]).reshape(-1)
    so_far = jnp.cumsum(wanted)
    # Counting (some ten thousand comparisons) is faster than a search or a scatter.
    source = (so_far <= jnp.arange(budget)[:, None]).sum(axis=-1)
    return RaggedIndex(jnp.minimum(source, wanted.size - 1), jnp.clip(so_far - 1, 0, budget - 1).reshape(-1, t))
