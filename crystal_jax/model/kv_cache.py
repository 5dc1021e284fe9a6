"""The keys and values of what a model has read.

Axis letters: l layer, b batch, k key/value heads, s cached position, t new position, h head dimension.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int, Int8

from crystal_jax.config import ModelConfig
from crystal_jax.sharding import BATCH, Layout, cache_spec, on_each_device

# The axes of keys and of values. See `Cache` for the reasons.
AXES: dict[Layout, tuple[str, str]] = {
    "head_major": ("bkhs", "bksh"),
    "stacked": ("lbksh", "lbksh"),
    "position_major": ("bskh", "bskh"),
}

_LARGEST = 127  # -128 stays unused: a number and its negative get opposite codes


class QuantizedKV(NamedTuple):
    """Keys or values in 8 bits: a head's numbers at a position are codes in steps of one scale, of their largest.

    Attributes:
        codes: With the axes of what they stand for.
        scales: Without its axis h.
    """

    codes: Int8[Array, " ..."]
    scales: Float32[Array, " ..."]


def quantize_kv(wide: Float[Array, " ..."], *, axis: int = -1) -> QuantizedKV:
    """Rounds keys or values, whose h is the given axis."""
    wide = wide.astype(jnp.float32)
    largest = jnp.abs(wide).max(axis=axis)
    scales = jnp.where(largest == 0, 1, largest) / _LARGEST
    return QuantizedKV(jnp.round(wide / jnp.expand_dims(scales, axis)).astype(jnp.int8), scales)


def dequantize_kv(coded: QuantizedKV, dtype: jnp.dtype | str, *, axis: int = -1) -> Float[Array, " ..."]:
    """What `quantize_kv` rounded."""
    return (coded.codes * jnp.expand_dims(coded.scales, axis)).astype(dtype)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["keys", "values", "length"], meta_fields=["layout"])
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of the positions read so far (a KV cache), in the layout that the device reads fastest.

    head_major      For CPUs. One array a layer; heads stand before positions, so that a decode step reads each head's
                    keys in one piece: five times faster there than with a layer axis in front. The keys' positions
                    are last: the scores of several new tokens are then a product whose right side lies as XLA's
                    products on CPU want it, in a third of the time.
    stacked         For TPUs. One array for all layers: the layers are a loop, and what a loop reads and writes must be
                    one array.
    position_major  For GPUs. One array a layer, with the axes that cuDNN's attention reads; new positions are written
                    in one piece.

    Each row has its own length, so that rows at different places of different texts are read side by side.

    Attributes:
        keys: num_layers arrays, or one where they are stacked, with the axes of `AXES`; each may be `QuantizedKV`.
        values: As `keys`; coded where keys are. What stands beyond a row's length is never attended to.
        length: Positions filled in each row, [b].
        layout: One of the three.
    """

    # JAX rebuilds it with shapes, shardings or axes in place of arrays, so their types cannot be stated.
    keys: Any
    values: Any
    length: Any
    layout: Layout

    @property
    def stacked(self) -> bool:
        """Whether all layers are in one array."""
        return self.layout == "stacked"

    @property
    def coded(self) -> bool:
        """Whether it is in 8 bits."""
        return isinstance(self.keys if self.stacked else self.keys[0], QuantizedKV)

    @property
    def capacity(self) -> int:
        """Positions that a row has room for."""
        return jax.tree.leaves(self.values)[0].shape[AXES[self.layout][1].index("s")]

    def replace(self, **changes: Any) -> Cache:
        """A copy with other fields."""
        return dataclasses.replace(self, **changes)

    def axes(self, name: Literal["s", "b"]) -> tuple[Any, Any]:
        """Where each array of keys and of values has the axis of positions (s) or rows (b)."""
        return tuple(
            _axes(part, axes, name) for part, axes in zip((self.keys, self.values), AXES[self.layout], strict=True)
        )


def _axes(part: Any, axes: str, name: str) -> Any:
    """The place of an axis in each array; scales lack h."""
    scales = axes.replace("h", "").index(name)

    def of(array: Any) -> Any:
        return QuantizedKV(axes.index(name), scales) if _is_coded(array) else axes.index(name)  # type: ignore[arg-type]

    return jax.tree.map(of, part, is_leaf=_is_coded)


def _is_coded(part: Any) -> bool:
    return isinstance(part, QuantizedKV)


def arrange(x: Float[Array, "b t k h"], axes: str) -> Array:
    """New keys or values of a layer, with the axes of a cache's."""
    return jnp.einsum(f"bskh->{axes}", x)


def empty_cache(
    cfg: ModelConfig, *, batch: int, capacity: int, layout: Layout = "head_major", coded: bool = False
) -> Cache:
    """A cache for `capacity` positions of `batch` rows; `coded`, it takes half the memory of bfloat16."""
    size = {"l": cfg.num_layers, "b": batch, "k": cfg.num_kv_heads, "s": capacity, "h": cfg.head_dim}

    def blank(axes: str) -> Any:
        shape = [size[axis] for axis in axes]
        each = [jnp.zeros(shape, cfg.dtype) for _ in range(1 if layout == "stacked" else cfg.num_layers)]
        return each[0] if layout == "stacked" else tuple(each)

    keys, values = map(blank, AXES[layout])
    cache = Cache(keys, values, jnp.zeros(batch, jnp.int32), layout)
    return _encode_all(cache) if coded else cache


def _encode_all(cache: Cache) -> Cache:
    """A cache whose keys and values are rounded."""
    keys, values = (
        jax.tree.map(functools.partial(quantize_kv, axis=axes.index("h")), part)
        for part, axes in zip((cache.keys, cache.values), AXES[cache.layout], strict=True)
    )
    return cache.replace(keys=keys, values=values)


def append(cache: Cache, keys: Any, values: Any, count: Int[Array, " b"]) -> Cache:
    """Writes t new keys and values of all layers behind those of each row; the first `count` are its own from then on.

    The cache is stacked; keys and values are [l, b, k, t, h], coded where it is.
    """
    old, new = (cache.keys, cache.values), (keys, values)
    all_keys, all_values = _write(old, new, cache.length, cache.layout)
    return cache.replace(keys=all_keys, values=all_values, length=cache.length + count)


def append_layer(
    past: tuple[Any, Any],
    keys: Float[Array, "b t k h"],
    values: Float[Array, "b t k h"],
    length: Int[Array, " b"],
    layout: Layout,
) -> tuple[Any, Any]:
    """As `append`, of one layer's own keys and values, which it codes where the past is coded."""
    new: tuple[Any, ...] = tuple(arrange(x, axes) for x, axes in zip((keys, values), AXES[layout], strict=True))
    if _is_coded(past[0]):
        new = tuple(quantize_kv(x, axis=axes.index("h")) for x, axes in zip(new, AXES[layout], strict=True))
    return _write(past, new, length, layout)


def _write(old: Any, new: Any, length: Array, layout: Layout) -> Any:
    """Puts new positions behind the `length` that each row has, each device its own rows."""
    held = cache_spec(layout)
    rows = AXES[layout][0].index("b")
    axes = tuple(_axes(part, names, "s") for part, names in zip(old, AXES[layout], strict=True))

    def write(old: Any, new: Any, start: Array) -> Any:
        def put(old: Array, new: Array, positions: int, row: Array) -> Array:
            at = [jnp.zeros((), jnp.int32)] * old.ndim
            at[rows], at[positions] = row, start[row]
            return jax.lax.dynamic_update_slice(old, jax.lax.dynamic_slice_in_dim(new, row, 1, rows), at)

        def put_all(old: Array, new: Array, positions: int) -> Array:
            return jax.vmap(lambda old, new, at: jax.lax.dynamic_update_slice_in_dim(old, new, at, positions - 1))(
                old, new, start
            )

        def one_row(old: Any, row: Array) -> tuple[Any, None]:
            return jax.tree.map(lambda old, new, axis: put(old, new, axis, row), old, new, axes), None

        if layout == "position_major":  # one scatter: on a GPU, a loop over rows is a launch of a kernel for each
            return jax.tree.map(put_all, old, new, axes)
        # Row by row: a slice of one row is written in place. The scatter that would write all rows at once is slow on
        # CPU, and a TPU's copies the whole cache where the heads of a device do not fill its tiles. Counted by the loop
        # itself, the rows make libtpu 0.0.42 take the loop for one that writes all of the cache, and fail.
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

    def put(old: Array, new: Array, positions: int, rows: int) -> Array:
        new = jnp.take(new, taken, axis=rows)
        head = jax.lax.slice_in_dim(old, 0, new.shape[positions], axis=positions)
        head = jnp.where(fresh.reshape([-1 if i == rows else 1 for i in range(old.ndim)]), new, head)
        return jax.lax.dynamic_update_slice_in_dim(old, head, 0, axis=positions)

    keys, values = (
        jax.tree.map(put, *parts)
        for parts in zip(
            (cache.keys, cache.values), (other.keys, other.values), cache.axes("s"), cache.axes("b"), strict=True
        )
    )
    return cache.replace(keys=keys, values=values, length=jnp.where(fresh, other.length[taken], cache.length))


def resize(cache: Cache, kept: Int[Array, " c"], *, capacity: int) -> Cache:
    """The rows `kept`, with another capacity, which must hold them."""

    def fit(leaf: Array, positions: int, rows: int) -> Array:
        leaf = jnp.take(jax.lax.slice_in_dim(leaf, 0, min(capacity, cache.capacity), axis=positions), kept, axis=rows)
        room = [(0, 0)] * leaf.ndim
        room[positions] = (0, capacity - leaf.shape[positions])
        return jnp.pad(leaf, room)

    keys, values = (
        jax.tree.map(fit, *parts)
        for parts in zip((cache.keys, cache.values), cache.axes("s"), cache.axes("b"), strict=True)
    )
    return cache.replace(keys=keys, values=values, length=cache.length[kept])
