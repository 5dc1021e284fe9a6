"""A frozen base in 8 or 4 bits a weight: the kernels of the blocks as integer codes and float32 scales.

int8  one scale for each output channel; a code is the weight in steps of it.
int4  one scale for each `block_size` weights of a column; a code is the weight in steps of it.
nf4   the same blocks; a code names one of sixteen quantiles of the normal distribution (QLoRA: Dettmers et al.,
      arXiv:2305.14314).

A kernel [ins..., outs...] becomes `codes` and `scales` with the same axes in the same order, so the row of the sharding
table for the kernel holds for both. `codes` is [ins..., outs...] in int8; in 4 bits two neighbours along the last input
axis share a byte, and that axis is half as long. `scales` has 1 for every input axis (int8), or on the last input axis
the number of blocks (4 bits). Blocks do not cross that axis: those of `o` lie within a head. Where its length is no
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
_LARGEST = {"int8": 127, "int4": 7}  # -128 and -8 stay unused: a weight and its negative get opposite codes


class Quantized(NamedTuple):
    """A kernel in few bits; the module's docstring has the shapes."""

    codes: Int8[Array, " ..."] | UInt8[Array, " ..."]
    scales: Float32[Array, " ..."]


def quantize(kernel: Float[Array, " ..."], cfg: QuantizationConfig, *, inputs: int) -> Quantized:
    """Rounds one kernel [ins..., outs...] with `inputs` input axes to the nearest codes.

    Raises:
        ValueError: 4 bits, and the last input axis is odd: its last weight has no neighbour to share a byte with.
    """
    wide = kernel.astype(jnp.float32)
    if cfg.kind == "int8":
        scales = _nonzero(jnp.abs(wide).max(axis=tuple(range(inputs)), keepdims=True)) / _steps(cfg)
        return Quantized(_nearest_integer(wide / scales, cfg).astype(jnp.int8), scales)
    axis = inputs - 1
    if kernel.shape[axis] % 2:
        raise ValueError(f"{cfg.kind} packs pairs, and axis {axis} of a kernel of shape {kernel.shape} is odd")
    scales = _nonzero(_block_maxima(jnp.abs(wide), cfg, axis)) / _steps(cfg)
    relative = wide / _spread(scales, cfg, axis, kernel.shape[axis])
    if cfg.kind == "nf4":
        # The nearest value's index is the number of midpoints below.
        middles = [(a + b) / 2 for a, b in itertools.pairwise(NF4)]
        codes = sum(((relative > middle).astype(jnp.uint8) for middle in middles), start=jnp.uint8(0))
    else:
        codes = (_nearest_integer(relative, cfg) + 8).astype(jnp.uint8)
    return Quantized(_pack(codes, axis), scales)


def dequantize(packed: Quantized, cfg: QuantizationConfig, *, inputs: int, dtype: jnp.dtype) -> Float[Array, " ..."]:
    """The kernel that `quantize` rounded, in float32 arithmetic and then `dtype`.

    Elementwise throughout (a code's value is chosen by its bits, not looked up in memory), so that XLA can make it
    part of the product that reads it instead of writing the wide kernel out.
    """
    if cfg.kind == "int8":
        return (packed.codes * packed.scales).astype(dtype)
    axis = inputs - 1
    codes = _unpack(packed.codes, axis)
    relative = _choose(codes, NF4) if cfg.kind == "nf4" else codes.astype(jnp.float32) - 8
    return (relative * _spread(packed.scales, cfg, axis, codes.shape[axis])).astype(dtype)


def quantize_state(state: nnx.State, cfg: QuantizationConfig, **options: Any) -> nnx.State:
    """`quantize_each` of a state's parameters."""
    return quantize_each(nnx.to_flat_state(state), cfg, **options)


def quantize_each(
    parameters: Iterable[tuple[tuple[Any, ...], nnx.Variable]],
    cfg: QuantizationConfig,
    *,
    where: nnx.State | None = None,
    donate: bool = False,
) -> nnx.State:
    """The parameters with each kernel of the blocks replaced by its codes and scales; the rest is passed on.

    One kernel after the other, and of each one layer after the other: beside the parameters themselves only a layer's
    float32 copy is held. If they come one by one and are donated, never more than one of them is wide.

    Args:
        parameters: Of a model without quantisation, by their paths.
        cfg: How to quantise.
        where: The result's shardings, if they are not to be the compiler's choice.
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
    """The inverse of `quantize_state` up to rounding; kernels come in the type of the other frozen weights."""
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
    """Whether some kernels of the state are codes."""
    return any(path[-1] == "codes" for path, _ in nnx.to_flat_state(state))


def _steps(cfg: QuantizationConfig) -> float:
    """Scales between zero and the largest weight of a block.

    For integers half a step more than the largest code: the outermost steps then are as wide as the others, and the
    mean error of int4 is 5 % smaller than if the largest weight were met exactly.
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
    """Each block's scale for each of its weights: [..., blocks, ...] to [..., size, ...]."""
    repeated = jnp.repeat(scales, min(cfg.block_size, size), axis=axis)
    return jax.lax.slice_in_dim(repeated, 0, size, axis=axis)


def _pack(codes: UInt8[Array, " ..."], axis: int) -> UInt8[Array, " ..."]:
    """Neighbours in one byte, the earlier in its low half.

    Neighbours and not the halves of the axis: a shard of the bytes then holds the weights of the same shard of the
    kernel. And bytes, not JAX's 4-bit types: TensorStore, and with it Orbax, has no uint4, and takes a byte for int4.
    """
    pairs = codes.reshape(*codes.shape[:axis], -1, 2, *codes.shape[axis + 1 :])
    low, high = (jax.lax.index_in_dim(pairs, i, axis + 1, keepdims=False) for i in (0, 1))
    return low | (high << 4)


def _unpack(packed: UInt8[Array, " ..."], axis: int) -> UInt8[Array, " ..."]:
    pairs = jnp.stack([packed & 15, packed >> 4], axis=axis + 1)
    return pairs.reshape(*packed.shape[:axis], -1, *packed.shape[axis + 1 :])


def _choose(codes: UInt8[Array, " ..."], values: tuple[float, ...]) -> Float32[Array, " ..."]:
    """`values[codes]` by halving the values with each bit: 15 selections, where a TPU would be slow at a gather."""
    left: list[Array] = [jnp.float32(value) for value in values]
    for bit in range(4):
        odd = (codes >> bit) & 1 == 1
        left = [jnp.where(odd, high, low) for low, high in zip(left[::2], left[1::2], strict=True)]
    return left[0]
