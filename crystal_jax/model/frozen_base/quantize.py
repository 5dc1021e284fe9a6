"""Quantisation of a frozen base: the kernels of the blocks as 8- or 4-bit integer codes and float32 scales.

int8  one scale for each output channel; a code is the weight in units of the scale.
int4  one scale for each `block_size` weights of a column; a code is the weight in units of the scale.
nf4   blocks as for int4; a code is the index of one of sixteen quantiles of the normal distribution (QLoRA: Dettmers
      et al., arXiv:2305.14314).

A kernel [ins..., outs...] becomes `codes` and `scales` with the same axes in the same order, so the kernel's row of the
sharding table holds for both. `codes` is [ins..., outs...] in int8; in 4 bits, two neighbours along the last input axis
share a byte, and that axis is half as long. `scales` has length 1 on every input axis (int8), or the number of blocks
on the last input axis (4 bits). Blocks do not cross that axis: those of `o` lie within a head. If its length is no
multiple of the block size, the last block is shorter.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int8, UInt8

from crystal_jax.config import QuantizationConfig, input_axes
from crystal_jax.errors import RequestError

# Appendix E of QLoRA: quantiles of N(0, 1), scaled to [-1, 1], with an exact zero.
NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
_LARGEST = {"int8": 127, "int4": 7}  # -128 and -8 are unused, so that a weight and its negative have opposite codes


class Quantized(NamedTuple):
    """A quantised kernel; the module's docstring gives the shapes.

    Attributes:
        codes: Integer codes; in 4 bits, two in a byte.
        scales: Scale of each channel or block.
    """

    codes: Int8[Array, " ..."] | UInt8[Array, " ..."]
    scales: Float32[Array, " ..."]


def quantize(kernel: Float[Array, " ..."], cfg: QuantizationConfig, *, inputs: int) -> Quantized:
    """Quantises a kernel [ins..., outs...] with `inputs` input axes to the nearest codes.

    Raises:
        RequestError: 4 bits, and the last input axis is odd: its last weight has no neighbour to share a byte with.
    """
    wide = kernel.astype(jnp.float32)
    if cfg.kind == "int8":
        scales = _nonzero(jnp.abs(wide).max(axis=tuple(range(inputs)), keepdims=True)) / _steps(cfg)
        return Quantized(_nearest_integer(wide / scales, cfg).astype(jnp.int8), scales)
    axis = inputs - 1
    if kernel.shape[axis] % 2:
        raise RequestError(f"{cfg.kind} packs pairs, and axis {axis} of a kernel of shape {kernel.shape} is odd")
    scales = _nonzero(_block_maxima(jnp.abs(wide), cfg, axis)) / _steps(cfg)
    relative = wide / _spread(scales, cfg, axis, kernel.shape[axis])
    if cfg.kind == "nf4":
        # The index of the nearest value is the number of midpoints below.
        middles = [(a + b) / 2 for a, b in itertools.pairwise(NF4)]
        codes = sum(((relative > middle).astype(jnp.uint8) for middle in middles), start=jnp.uint8(0))
    else:
        codes = (_nearest_integer(relative, cfg) + 8).astype(jnp.uint8)
    return Quantized(_pack(codes, axis), scales)


def dequantize(packed: Quantized, cfg: QuantizationConfig, *, inputs: int, dtype: jnp.dtype) -> Float[Array, " ..."]:
    """Returns the kernel that the codes stand for, computed in float32 and cast to `dtype`.

    All operations are elementwise (a code's value is selected by its bits, not looked up in memory), so that XLA can
    fuse them into the product that reads the kernel, instead of writing the dequantised kernel to memory.
    """
    if cfg.kind == "int8":
        return (packed.codes * packed.scales).astype(dtype)
    axis = inputs - 1
    codes = _unpack(packed.codes, axis)
    relative = _choose(codes, NF4) if cfg.kind == "nf4" else codes.astype(jnp.float32) - 8
    return (relative * _spread(packed.scales, cfg, axis, codes.shape[axis])).astype(dtype)


def quantize_state(state: nnx.State, cfg: QuantizationConfig, **options: Any) -> nnx.State:
    """Quantises the parameters of a state; see `quantize_each`."""
    return quantize_each(nnx.to_flat_state(state), cfg, **options)


def quantize_each(
    parameters: Iterable[tuple[tuple[Any, ...], nnx.Variable]],
    cfg: QuantizationConfig,
    *,
    where: nnx.State | None = None,
    donate: bool = False,
) -> nnx.State:
    """Returns the parameters with each kernel of the blocks replaced by its codes and scales.

    Kernels are quantised one by one, and layer by layer: besides the parameters, only the float32 copy of one layer is
    in memory. If parameters arrive one by one and are donated, at most one kernel is unquantised at any time.

    Args:
        parameters: Parameters of a model without quantisation, with their paths.
        cfg: Configuration of the quantisation.
        where: Shardings of the result; by default the compiler chooses them.
        donate: Free each kernel as soon as its codes exist.
    """
    shardings = {} if where is None else {path: leaf.get_value() for path, leaf in nnx.to_flat_state(where)}
    flat = {}
    for path, variable in parameters:
        *parent, name = path
        if name != "kernel":
            flat[path] = variable
            continue
        kernel = variable.get_value()
        targets = [(*parent, field) for field in Quantized._fields]
        out = Quantized(*(shardings[path] for path in targets)) if shardings else None
        convert = functools.partial(quantize, cfg=cfg, inputs=input_axes(str(parent[-1])))
        packed = jax.jit(functools.partial(jax.lax.map, convert), out_shardings=out)(kernel)
        if donate:
            jax.block_until_ready(packed)
            kernel.delete()
        flat |= {path: nnx.Param(array) for path, array in zip(targets, packed, strict=True)}
    return nnx.from_flat_state(flat)


def dequantize_state(state: nnx.State, cfg: QuantizationConfig) -> nnx.State:
    """Inverts `quantize_state`, up to rounding; kernels get the dtype of the other frozen weights."""
    variables = dict(nnx.to_flat_state(state))
    dtype = variables[("embedding",)].get_value().dtype
    flat = {}
    for path, variable in variables.items():
        *parent, name = path
        if name == "codes":
            packed = Quantized(variable.get_value(), variables[(*parent, "scales")].get_value())
            convert = functools.partial(dequantize, cfg=cfg, inputs=input_axes(str(parent[-1])), dtype=dtype)
            flat[(*parent, "kernel")] = nnx.Param(jax.lax.map(convert, packed))
        elif name != "scales":
            flat[path] = variable
    return nnx.from_flat_state(flat)


def is_quantized(state: nnx.State) -> bool:
    """Whether some kernels of the state are quantised."""
    return any(path[-1] == "codes" for path, _ in nnx.to_flat_state(state))


def _steps(cfg: QuantizationConfig) -> float:
    """Returns the largest weight of a block in units of its scale.

    For integers it is half a step more than the largest code: the outermost steps are then as wide as the others, and
    the mean error of int4 is 5 % smaller than if the largest weight were represented exactly.
    """
    return 1.0 if cfg.kind == "nf4" else _LARGEST[cfg.kind] + 0.5


def _nonzero(maxima: Array) -> Array:
    return jnp.where(maxima == 0, 1, maxima)


def _nearest_integer(relative: Array, cfg: QuantizationConfig) -> Array:
    largest = _LARGEST[cfg.kind]
    return jnp.clip(jnp.round(relative), -largest, largest)


def _block_maxima(magnitudes: Array, cfg: QuantizationConfig, axis: int) -> Array:
    size = magnitudes.shape[axis]
    block = min(cfg.block_size, size)
    padding = [(0, 0)] * magnitudes.ndim
    padding[axis] = (0, -size % block)
    padded = jnp.pad(magnitudes, padding)
    return padded.reshape(*padded.shape[:axis], -1, block, *padded.shape[axis + 1 :]).max(axis=axis + 1)


def _spread(scales: Array, cfg: QuantizationConfig, axis: int, size: int) -> Array:
    """Repeats each block's scale for each of its weights: [..., blocks, ...] to [..., size, ...]."""
    repeated = jnp.repeat(scales, min(cfg.block_size, size), axis=axis)
    return jax.lax.slice_in_dim(repeated, 0, size, axis=axis)


def _pack(codes: UInt8[Array, " ..."], axis: int) -> UInt8[Array, " ..."]:
    """Packs neighbours into one byte, the earlier one in the low half.

    Packing neighbours rather than the halves of the axis means that a shard of the bytes holds the weights of the same
    shard of the kernel. Bytes are used, not JAX's 4-bit types: TensorStore, and with it Orbax, has no uint4, and stores
    an int4 in a byte.
    """
    pairs = codes.reshape(*codes.shape[:axis], -1, 2, *codes.shape[axis + 1 :])
    low, high = (jax.lax.index_in_dim(pairs, i, axis + 1, keepdims=False) for i in (0, 1))
    return low | (high << 4)


def _unpack(packed: UInt8[Array, " ..."], axis: int) -> UInt8[Array, " ..."]:
    pairs = jnp.stack([packed & 15, packed >> 4], axis=axis + 1)
    return pairs.reshape(*packed.shape[:axis], -1, *packed.shape[axis + 1 :])


def _choose(codes: UInt8[Array, " ..."], values: tuple[float, ...]) -> Float32[Array, " ..."]:
    """Returns `values[codes]`, halving the values with each bit: 15 selections, since gathers are slow on TPU."""
    left: list[Array] = [jnp.float32(value) for value in values]
    for bit in range(4):
        odd = (codes >> bit) & 1 == 1
        left = [jnp.where(odd, high, low) for low, high in zip(left[::2], left[1::2], strict=True)]
    return left[0]
