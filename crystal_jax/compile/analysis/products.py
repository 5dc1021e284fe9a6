"""Counts the multiplications and additions of products in a compiled program: `dot`, `convolution`, splash kernels."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence

import numpy as np

from crystal_jax.compile.analysis.hlo import Computation, Instruction, operand_shapes

# JAX's splash kernels by name, and their number of products over all pairs of positions: q·k and weights·v forward;
# backward each kernel computes q·k and values·gradient again, besides the gradients.
_SPLASH = re.compile(r"%splash_m[hq]a_(fwd|dq|dkv)")
_SPLASH_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}


def product_flops(computation: Computation, instruction: Instruction) -> int:
    """Returns the multiplications and additions of a `dot` or `convolution`; the TPU compiler converts the former to
    the latter.
    """
    left, right = (computation[name].shapes[0] for name in instruction.operands[:2])
    out = instruction.shapes[0]
    if instruction.opcode == "dot":
        axes = instruction.option(r"lhs_contracting_dims=\{([\d,]*)\}") or ""
        return 2 * out.elements * math.prod(left.sizes[int(axis)] for axis in axes.split(",") if axis)
    labels = instruction.option(r"dim_labels=(\S+?),? ") or instruction.option(r"dim_labels=([^,]+)") or ""
    left_axes, right_axes, out_axes = re.split("_|->", labels.rstrip(","))
    total = 2 * out.sizes[out_axes.index("b")] * out.sizes[out_axes.index("f")] * right.sizes[right_axes.index("i")]
    window = _window(instruction)
    for axis in (a for a in out_axes if a.isdigit()):
        total *= _meetings(
            left.sizes[left_axes.index(axis)], out.sizes[out_axes.index(axis)], *(w[int(axis)] for w in window)
        )
    return total


def splash_flops(computation: Computation, instruction: Instruction) -> int:
    """Returns the multiplications and additions of a splash kernel over all pairs of positions of a row; 0 for other
    kernels.
    """
    kernel = _SPLASH.match(instruction.name)
    if kernel is None:
        return 0
    # Queries and keys, [..., head, position, width], follow integer arrays that state which tiles to skip.
    q, keys, *_ = (shape for shape in operand_shapes(computation, instruction) if shape.dtype in ("bf16", "f32"))
    return 2 * _SPLASH_PRODUCTS[kernel[1]] * q.elements * keys.sizes[-2]


def _window(instruction: Instruction) -> tuple[Sequence[int], ...]:
    """Returns size, stride, padding before, and dilation of input and window, for each spatial axis."""
    text = instruction.option(r"window=\{([^}]*)\}") or ""
    stated = dict(part.split("=") for part in text.split())
    size = [int(n) for n in stated.get("size", "1").split("x")] if "size" in stated else [1] * 8

    def numbers(name: str, default: int) -> list[int]:
        given = stated.get(name)
        return [int(n.split("_")[0]) for n in given.split("x")] if given else [default] * len(size)

    return size, numbers("stride", 1), numbers("pad", 0), numbers("lhs_dilate", 1), numbers("rhs_dilate", 1)


@functools.cache
def _meetings(n_in: int, n_out: int, size: int, stride: int, pad: int, dilate_in: int, dilate_window: int) -> int:
    """Counts pairs of output and window positions that meet an element of the input, not padding or a gap.

    Batched products are compiled to convolutions whose window meets a single element for each output.
    """
    place = np.arange(n_out)[:, None] * stride - pad + np.arange(size)[None] * dilate_window
    return int(((place >= 0) & (place <= (n_in - 1) * dilate_in) & (place % dilate_in == 0)).sum())
