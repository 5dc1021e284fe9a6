"""The keys and values of what a model has read.

Axis letters: l layer, b batch, k key/value heads, s cached position, t new position, h head dimension.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from crystal_jax.config import LlamaConfig
from crystal_jax.sharding import BATCH, CACHED, on_each_device


class Cache(NamedTuple):
    """Keys and values of the positions read so far, one array a layer, or all layers in one.

    Heads stand before positions: a decode step then reads each head's keys in one piece, which on CPU is worth a
    factor of five over any layout with a layer axis in front. On a TPU the layers are a loop, and what a loop reads
    and writes must be one array.

    Each row has its own length, so that rows at different places of different texts are read side by side.

    Attributes:
        keys, values: num_layers arrays of shape [b, k, s, h], or one [l, b, k, s, h]. What stands beyond a row's length
            is never attended to.
        length: Positions filled in each row.
    """

    keys: tuple[Float[Array, "b k s h"], ...] | Float[Array, "l b k s h"]
    values: tuple[Float[Array, "b k s h"], ...] | Float[Array, "l b k s h"]
    length: Int[Array, " b"]

    @property
    def stacked(self) -> bool:
        """Whether all layers are in one array."""
        return not isinstance(self.keys, tuple)

    @property
    def capacity(self) -> int:
        """Positions that a row has room for."""
        return jax.tree.leaves(self.keys)[0].shape[-2]


def empty_cache(cfg: LlamaConfig, *, batch: int, capacity: int, stacked: bool = False) -> Cache:
    """A cache for `capacity` positions of `batch` rows; `stacked` for `Llama.extend` to loop over the layers."""
    shape = (batch, cfg.num_kv_heads, capacity, cfg.head_dim)

    def blank() -> tuple[Array, ...] | Array:
        if stacked:
            return jnp.zeros((cfg.num_layers, *shape), cfg.dtype)
        return tuple(jnp.zeros(shape, cfg.dtype) for _ in range(cfg.num_layers))

    return Cache(blank(), blank(), jnp.zeros(batch, jnp.int32))


def append(
    cache: Cache,
    keys: tuple[Float[Array, "b k t h"], ...] | Float[Array, "l b k t h"],
    values: tuple[Float[Array, "b k t h"], ...] | Float[Array, "l b k t h"],
    count: Int[Array, " b"],
) -> Cache:
    """Writes t new keys and values behind those that each row has; the first `count` of them are its own from then on.

    Row by row, each device its own rows: a slice of one row is written in place. The scatter that would write all rows
    at once is slow on CPU, and a TPU's copies the whole cache where the heads of a device do not fill its tiles.
    """
    axis = int(cache.stacked)

    def write(old: Any, new: Any, start: Array) -> Any:
        def put(old: Array, new: Array, row: Array) -> Array:
            at = [jnp.zeros((), jnp.int32)] * old.ndim
            at[axis], at[-2] = row, start[row]
            return jax.lax.dynamic_update_slice(old, jax.lax.dynamic_slice_in_dim(new, row, 1, axis), at)

        def one_row(old: Any, row: Array) -> tuple[Any, None]:
            return jax.tree.map(lambda old, new: put(old, new, row), old, new), None

        # Counted by the loop itself, the rows make libtpu 0.0.42 take the loop for one that writes all of the cache,
        # and fail.
        return jax.lax.scan(one_row, old, jnp.arange(start.shape[0]))[0]

    held = P(None, *CACHED) if cache.stacked else CACHED
    write = on_each_device(write, in_specs=(held, held, BATCH), out_specs=held)
    all_keys, all_values = write((cache.keys, cache.values), (keys, values), cache.length)
    return Cache(all_keys, all_values, cache.length + count)
