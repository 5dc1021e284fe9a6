"""The keys and values of what a model has read.

Axis letters: l layer, b batch, k key/value heads, s cached position, t new position, h head dimension.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Float32, Int, Int8

from crystal_jax.config import ModelConfig
from crystal_jax.sharding import BATCH, CACHED, on_each_device

_LARGEST = 127  # -128 stays unused: a number and its negative get opposite codes


class Coded(NamedTuple):
    """Keys or values in 8 bits: a head's numbers at a position are codes in steps of one scale, of their largest.

    Attributes:
        codes: With the axes of what they stand for.
        scales: Without its axis h.
    """

    codes: Int8[Array, " ..."]
    scales: Float32[Array, " ..."]


def encode(wide: Float[Array, " ..."], *, axis: int = -1) -> Coded:
    """Rounds keys or values, whose h is the given axis."""
    wide = wide.astype(jnp.float32)
    largest = jnp.abs(wide).max(axis=axis)
    scales = jnp.where(largest == 0, 1, largest) / _LARGEST
    return Coded(jnp.round(wide / jnp.expand_dims(scales, axis)).astype(jnp.int8), scales)


def decode(coded: Coded, dtype: jnp.dtype | str, *, axis: int = -1) -> Float[Array, " ..."]:
    """What `encode` rounded."""
    return (coded.codes * jnp.expand_dims(coded.scales, axis)).astype(dtype)


class Cache(NamedTuple):
    """Keys and values of the positions read so far, one array a layer, or all layers in one.

    Heads stand before positions: a decode step then reads each head's keys in one piece, which on CPU is worth a
    factor of five over any layout with a layer axis in front. On a TPU the layers are a loop, and what a loop reads
    and writes must be one array.

    A layer's own keys have their positions last. The scores of several new tokens are then a product whose right side
    lies as XLA's products on CPU want it: they take a third of the time.

    Each row has its own length, so that rows at different places of different texts are read side by side.

    Attributes:
        keys: num_layers arrays of shape [b, k, h, s], or one [l, b, k, s, h]; each of them may be `Coded`.
        values: num_layers arrays of shape [b, k, s, h], or one [l, b, k, s, h]; coded where keys are. What stands
            beyond a row's length is never attended to.
        length: Positions filled in each row.
    """

    keys: tuple[Float[Array, "b k h s"] | Coded, ...] | Float[Array, "l b k s h"] | Coded
    values: tuple[Float[Array, "b k s h"] | Coded, ...] | Float[Array, "l b k s h"] | Coded
    length: Int[Array, " b"]

    @property
    def stacked(self) -> bool:
        """Whether all layers are in one array."""
        return isinstance(self.keys, Coded) or not isinstance(self.keys, tuple)

    @property
    def coded(self) -> bool:
        """Whether it is in 8 bits."""
        return isinstance(self.keys if self.stacked else self.keys[0], Coded)

    @property
    def capacity(self) -> int:
        """Positions that a row has room for."""
        return jax.tree.leaves(self.values)[0].shape[-2]

    @property
    def positions(self) -> tuple[Any, Any]:
        """The axis of the positions in each array of keys and of values."""
        return _positions(self.keys, -2 if self.stacked else -1), _positions(self.values, -2)


def _positions(part: Any, axis: int) -> Any:
    def of(array: Any) -> Any:
        return Coded(axis, -1) if _is_coded(array) else axis  # type: ignore[arg-type]

    return jax.tree.map(of, part, is_leaf=_is_coded)


def _is_coded(part: Any) -> bool:
    return isinstance(part, Coded)


def empty_cache(cfg: ModelConfig, *, batch: int, capacity: int, stacked: bool = False, coded: bool = False) -> Cache:
    """A cache for `capacity` positions of `batch` rows.

    It is `stacked` for `Transformer.extend` to loop over the layers, and `coded` to take half the memory of bfloat16.
    """
    shape = (batch, cfg.num_kv_heads, capacity, cfg.head_dim)
    length = jnp.zeros(batch, jnp.int32)
    if stacked:
        keys, values = (jnp.zeros((cfg.num_layers, *shape), cfg.dtype) for _ in range(2))
        cache = Cache(keys, values, length)
    else:
        blank = [jnp.zeros(shape, cfg.dtype) for _ in range(2 * cfg.num_layers)]
        cache = Cache(tuple(k.swapaxes(-1, -2) for k in blank[::2]), tuple(blank[1::2]), length)
    return _encode_all(cache) if coded else cache


def _encode_all(cache: Cache) -> Cache:
    """A cache whose keys and values are rounded."""
    axis = -1 if cache.stacked else -2  # of h in the keys
    keys = jax.tree.map(lambda part: encode(part, axis=axis), cache.keys)
    return Cache(keys, jax.tree.map(encode, cache.values), cache.length)


def append(cache: Cache, keys: Any, values: Any, count: Int[Array, " b"]) -> Cache:
    """Writes t new keys and values of all layers behind those of each row; the first `count` are its own from then on.

    The cache is stacked; keys and values are [l, b, k, t, h], coded where it is.
    """
    old, new = (cache.keys, cache.values), (keys, values)
    all_keys, all_values = _write(old, new, cache.length, axes=cache.positions, held=P(None, *CACHED))
    return Cache(all_keys, all_values, cache.length + count)


def append_layer(
    past: tuple[Any, Any],
    keys: Float[Array, "b k t h"],
    values: Float[Array, "b k t h"],
    length: Int[Array, " b"],
) -> tuple[Any, Any]:
    """As `append`, of one layer's own keys and values, which it codes where the past is coded."""
    new: tuple[Any, Any] = (keys.swapaxes(-1, -2), values)
    if _is_coded(past[0]):
        new = encode(new[0], axis=-2), encode(values)
    return _write(past, new, length, axes=(_positions(past[0], -1), _positions(past[1], -2)), held=CACHED)


def _write(old: Any, new: Any, length: Array, *, axes: Any, held: P) -> Any:
    """Puts new positions, whose axis is given for each array, behind the `length` that each row has.

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

    A pass over `other`'s part of the cache; what stands beyond it is overwritten as the row grows. Where the cache is
    coded, `other` is rounded.
    """
    if cache.coded and not other.coded:
        other = _encode_all(other)
    fresh, taken = source >= 0, jnp.maximum(source, 0)
    rows = int(cache.stacked)

    def put(old: Array, new: Array, positions: int) -> Array:
        new = jnp.take(new, taken, axis=rows)
        head = jax.lax.slice_in_dim(old, 0, new.shape[positions], axis=positions)
        head = jnp.where(fresh.reshape([-1 if i == rows else 1 for i in range(old.ndim)]), new, head)
        return jax.lax.dynamic_update_slice_in_dim(old, head, 0, axis=positions)

    keys, values = (
        jax.tree.map(put, ours, theirs, axes)
        for ours, theirs, axes in zip(cache[:2], other[:2], cache.positions, strict=True)
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

    keys, values = (jax.tree.map(fit, part, axes) for part, axes in zip(cache[:2], cache.positions, strict=True))
    return Cache(keys, values, cache.length[kept])
