"""The KV cache: keys and values of the tokens that a model has read.

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

_LARGEST = 127  # -128 is unused, so that a number and its negative have opposite codes


class QuantizedKV(NamedTuple):
    """Keys or values in 8 bits: a head's numbers at one position share a scale, set by the largest of them.

    Attributes:
        codes: Integers, with the axes of the original array.
        scales: Steps of the codes, with these axes except h.
    """

    codes: Int8[Array, " ..."]
    scales: Float32[Array, " ..."]


def quantize_kv(wide: Float[Array, " ..."], *, axis: int = -1) -> QuantizedKV:
    """Quantises keys or values to 8 bits; `axis` is h."""
    wide = wide.astype(jnp.float32)
    largest = jnp.abs(wide).max(axis=axis)
    scales = jnp.where(largest == 0, 1, largest) / _LARGEST
    return QuantizedKV(jnp.round(wide / jnp.expand_dims(scales, axis)).astype(jnp.int8), scales)


def dequantize_kv(coded: QuantizedKV, dtype: jnp.dtype | str, *, axis: int = -1) -> Float[Array, " ..."]:
    """Returns the keys or values that the codes stand for."""
    return (coded.codes * jnp.expand_dims(coded.scales, axis)).astype(dtype)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["keys", "values", "length"], meta_fields=["layout"])
@dataclasses.dataclass(frozen=True)
class Cache:
    """A KV cache: keys and values of the positions read so far, in the layout that the device reads fastest.

    head_major      For CPUs. One array per layer, with heads before positions, so that a decode step reads each head's
                    keys as one block: five times faster there than with a leading layer axis. Keys are stored [heads,
                    dim, position], so that Q·K of several new tokens needs no transpose: a third of the time.
    stacked         For TPUs. One array for all layers: the layers are a loop, and what a loop reads and writes must be
                    one array.
    position_major  For GPUs. One array per layer, with the axes that cuDNN's attention reads; new positions are written
                    as one block.

    Each row has its own length, so that sequences of different lengths are decoded side by side.

    Attributes:
        keys: num_layers arrays, or one if they are stacked, with the axes of `AXES`; each may be `QuantizedKV`.
        values: As `keys`, and in 8 bits if keys are. Attention masks positions beyond a row's length.
        length: Number of filled positions in each row, [b].
        layout: One of the three layouts.
    """

    # Typed as Any: JAX rebuilds the class with shapes, shardings or axes in place of arrays.
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
        """Whether keys and values are in 8 bits."""
        return isinstance(self.keys if self.stacked else self.keys[0], QuantizedKV)

    @property
    def capacity(self) -> int:
        """Returns the number of positions that a row has room for."""
        return jax.tree.leaves(self.values)[0].shape[AXES[self.layout][1].index("s")]

    def replace(self, **changes: Any) -> Cache:
        """Returns a copy with some fields replaced."""
        return dataclasses.replace(self, **changes)

    def axes(self, name: Literal["s", "b"]) -> tuple[Any, Any]:
        """Returns, for each array of keys and values, the number of its axis of positions (s) or rows (b)."""
        return tuple(
            _axes(part, axes, name) for part, axes in zip((self.keys, self.values), AXES[self.layout], strict=True)
        )


def _axes(part: Any, axes: str, name: str) -> Any:
    """Returns the number of an axis in each array; scales lack h."""
    scales = axes.replace("h", "").index(name)

    def of(array: Any) -> Any:
        return QuantizedKV(axes.index(name), scales) if _is_coded(array) else axes.index(name)  # type: ignore[arg-type]

    return jax.tree.map(of, part, is_leaf=_is_coded)


def _is_coded(part: Any) -> bool:
    return isinstance(part, QuantizedKV)


def arrange(x: Float[Array, "b t k h"], axes: str) -> Array:
    """Returns new keys or values of a layer with the axes of the cache."""
    return jnp.einsum(f"bskh->{axes}", x)


def empty_cache(
    cfg: ModelConfig, *, batch: int, capacity: int, layout: Layout = "head_major", coded: bool = False
) -> Cache:
    """Returns an empty cache of `capacity` positions in `batch` rows; `coded` takes half the memory of bfloat16."""
    size = {"l": cfg.num_layers, "b": batch, "k": cfg.num_kv_heads, "s": capacity, "h": cfg.head_dim}

    def blank(axes: str) -> Any:
        shape = [size[axis] for axis in axes]
        each = [jnp.zeros(shape, cfg.dtype) for _ in range(1 if layout == "stacked" else cfg.num_layers)]
        return each[0] if layout == "stacked" else tuple(each)

    keys, values = map(blank, AXES[layout])
    cache = Cache(keys, values, jnp.zeros(batch, jnp.int32), layout)
    return _encode_all(cache) if coded else cache


def _encode_all(cache: Cache) -> Cache:
    """Returns the cache with keys and values in 8 bits."""
    keys, values = (
        jax.tree.map(functools.partial(quantize_kv, axis=axes.index("h")), part)
        for part, axes in zip((cache.keys, cache.values), AXES[cache.layout], strict=True)
    )
    return cache.replace(keys=keys, values=values)


def append(cache: Cache, keys: Any, values: Any, count: Int[Array, " b"]) -> Cache:
    """Writes t new keys and values of all layers after those of each row; the first `count` of them become valid.

    The cache must be stacked. Keys and values are [l, b, k, t, h], in 8 bits if the cache is.
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
    """Writes new keys and values of one layer after those of each row, in 8 bits if the layer's past is."""
    new: tuple[Any, ...] = tuple(arrange(x, axes) for x, axes in zip((keys, values), AXES[layout], strict=True))
    if _is_coded(past[0]):
        new = tuple(quantize_kv(x, axis=axes.index("h")) for x, axes in zip(new, AXES[layout], strict=True))
    return _write(past, new, length, layout)


def _write(old: Any, new: Any, length: Array, layout: Layout) -> Any:
    """Writes new positions after the `length` of each row; each device writes its own rows."""
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

        if layout == "position_major":  # one scatter: on a GPU, a loop over rows would launch a kernel for each of them
            return jax.tree.map(put_all, old, new, axes)
        # Row by row: a slice of one row is written in place. One scatter for all rows is slow on CPU; on TPU, it copies
        # the whole cache if the heads of a device do not fill the hardware's tiles. Row numbers are a scanned input:
        # with the loop's own counter, libtpu 0.0.42 mistakes the loop for one that writes the whole cache, and fails.
        return jax.lax.scan(one_row, old, jnp.arange(start.shape[0]))[0]

    return on_each_device(write, in_specs=(held, held, BATCH), out_specs=held)(old, new, length)


def put_rows(cache: Cache, other: Cache, source: Int[Array, " b"]) -> Cache:
    """Replaces each row whose `source` is not -1 by row `source` of `other`, whose capacity must not be larger.

    It writes only as many positions as `other` has; entries beyond a row's length are overwritten as the row grows. If
    the cache is in 8 bits, `other` is quantised.
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


def grow(cache: Cache, *, capacity: int) -> Cache:
    """Returns the cache with a larger capacity."""

    def pad(leaf: Array, positions: int) -> Array:
        room = [(0, 0)] * leaf.ndim
        room[positions] = (0, capacity - leaf.shape[positions])
        return jnp.pad(leaf, room)

    keys, values = (
        jax.tree.map(pad, *parts) for parts in zip((cache.keys, cache.values), cache.axes("s"), strict=True)
    )
    return cache.replace(keys=keys, values=values)
