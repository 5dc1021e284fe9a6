"""The keys and values of what a model has read.

Axis letters: l layer, b batch, k key/value heads, s cached position, t new position, h head dimension.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from crystal_jax.config import ModelConfig
from crystal_jax.sharding import BATCH, CACHED, on_each_device


class Cache(NamedTuple):
    """Keys and values of the positions read so far, one array a layer, or all layers in one.

    Heads stand before positions: a decode step then reads each head's keys in one piece, which on CPU is worth a
    factor of five over any layout with a layer axis in front. On a TPU the layers are a loop, and what a loop reads
    and writes must be one array.

    A layer's own keys have their positions last. The scores of several new tokens are then a product whose right side
    lies as XLA's products on CPU want it: they take a third of the time.

    Each row has its own length, so that rows at different places of different texts are read side by side.

    Attributes:
        keys: num_layers arrays of shape [b, k, h, s], or one [l, b, k, s, h].
        values: num_layers arrays of shape [b, k, s, h], or one [l, b, k, s, h]. What stands beyond a row's length is
            never attended to.
        length: Positions filled in each row.
    """

    keys: tuple[Float[Array, "b k h s"], ...] | Float[Array, "l b k s h"]
    values: tuple[Float[Array, "b k s h"], ...] | Float[Array, "l b k s h"]
    length: Int[Array, " b"]

    @property
    def stacked(self) -> bool:
        """Whether all layers are in one array."""
        return not isinstance(self.keys, tuple)

    @property
    def capacity(self) -> int:
        """Positions that a row has room for."""
        return jax.tree.leaves(self.values)[0].shape[-2]

    @property
    def positions(self) -> tuple[int, int]:
        """The axes of the positions in keys and in values."""
        return (-2 if self.stacked else -1), -2


def empty_cache(cfg: ModelConfig, *, batch: int, capacity: int, stacked: bool = False) -> Cache:
    """A cache for `capacity` positions of `batch` rows; `stacked` for `Transformer.extend` to loop over the layers."""
    shape = (batch, cfg.num_kv_heads, capacity, cfg.head_dim)
    length = jnp.zeros(batch, jnp.int32)
    if stacked:
        keys, values = (jnp.zeros((cfg.num_layers, *shape), cfg.dtype) for _ in range(2))
        return Cache(keys, values, length)
    blank = [jnp.zeros(shape, cfg.dtype) for _ in range(2 * cfg.num_layers)]
    return Cache(tuple(k.swapaxes(-1, -2) for k in blank[::2]), tuple(blank[1::2]), length)


def append(
    cache: Cache, keys: Float[Array, "l b k t h"], values: Float[Array, "l b k t h"], count: Int[Array, " b"]
) -> Cache:
    """Writes t new keys and values of all layers behind those of each row; the first `count` are its own from then on.

    The cache is stacked.
    """
    old, new = (cache.keys, cache.values), (keys, values)
    all_keys, all_values = _write(old, new, cache.length, axes=(-2, -2), held=P(None, *CACHED))
    return Cache(all_keys, all_values, cache.length + count)


def append_layer(
    past: tuple[Float[Array, "b k h s"], Float[Array, "b k s h"]],
    keys: Float[Array, "b k t h"],
    values: Float[Array, "b k t h"],
    length: Int[Array, " b"],
) -> tuple[Float[Array, "b k h s"], Float[Array, "b k s h"]]:
    """As `append`, of one layer's own keys and values."""
    return _write(past, (keys.swapaxes(-1, -2), values), length, axes=(-1, -2), held=CACHED)


def _write(old: Any, new: Any, length: Array, *, axes: tuple[int, int], held: P) -> Any:
    """Puts new positions, whose axes are given for keys and for values, behind the `length` that each row has.

    Row by row, each device its own rows: a slice of one row is written in place. The scatter that would write all rows
    at once is slow on CPU, and a TPU's copies the whole cache where the heads of a device do not fill its tiles.
    """
    rows = len(held) - len(CACHED)  # their axis

    def write(old: Any, new: Any, start: Array) -> Any:
        def put(old: Array, new: Array, positions: int, row: Array) -> Array:
            at = [jnp.zeros((), jnp.int32)] * old.ndim
            at[rows], at[positions] = row, start[row]
            return jax.lax.dynamic_update_slice(old, jax.lax.dynamic_slice_in_dim(new, row, 1, rows), at)

        def one_row(old: Any, row: Array) -> tuple[Any, None]:
            return jax.tree.map(lambda old, new, axis: put(old, new, axis, row), old, new, axes), None

        # Counted by the loop itself, the rows make libtpu 0.0.42 take the loop for one that writes all of the cache,
        # and fail.
        return jax.lax.scan(one_row, old, jnp.arange(start.shape[0]))[0]

    return on_each_device(write, in_specs=(held, held, BATCH), out_specs=held)(old, new, length)


def put_rows(cache: Cache, other: Cache, source: Int[Array, " b"]) -> Cache:
    """Replaces each row whose `source` is not -1 by that row of `other`, which has no more capacity.

    A pass over `other`'s part of the cache; what stands beyond it is overwritten as the row grows.
    """
    fresh, taken = source >= 0, jnp.maximum(source, 0)
    rows = int(cache.stacked)

    def put(old: Array, new: Array, positions: int) -> Array:
        new = jnp.take(new, taken, axis=rows)
        head = jax.lax.slice_in_dim(old, 0, new.shape[positions], axis=positions)
        head = jnp.where(fresh.reshape([-1 if i == rows else 1 for i in range(old.ndim)]), new, head)
        return jax.lax.dynamic_update_slice_in_dim(old, head, 0, axis=positions)

    keys, values = (
        jax.tree.map(lambda old, new, axis=axis: put(old, new, axis), ours, theirs)
        for ours, theirs, axis in zip(cache[:2], other[:2], cache.positions, strict=True)
    )
    return Cache(keys, values, jnp.where(fresh, other.length[taken], cache.length))


def resize(cache: Cache, kept: Int[Array, " c"], *, capacity: int) -> Cache:
    """The rows `kept`, with another capacity, which must hold them."""
    rows = int(cache.stacked)

    def fit(leaf: Array, positions: int) -> Array:
        leaf = jnp.take(jax.lax.slice_in_dim(leaf, 0, min(capacity, cache.capacity), axis=positions), kept, axis=rows)
        room = [(0, 0)] * leaf.ndim
        room[positions] = (0, capacity - leaf.shape[positions])
        return jnp.pad(leaf, room)

    keys, values = (
        jax.tree.map(lambda leaf, axis=axis: fit(leaf, axis), part)
        for part, axis in zip(cache[:2], cache.positions, strict=True)
    )
    return Cache(keys, values, cache.length[kept])
