"""Rotary position embedding.

Axis letters: b batch, t position, n head, h head dimension.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def rotary(
    positions: Int[Array, "b t"], *, head_dim: int, theta: float
) -> tuple[Float[Array, "b t 1 h"], Float[Array, "b t 1 h"]]:
    """Returns cosines and sines of the rotary embedding (Su et al., arXiv:2104.09864).

    θ is the base of the wavelengths. Each entry serves both members of a pair, with the sign that `rotate` needs.
    """
    frequencies = theta ** (-jnp.arange(0, head_dim, 2) / head_dim)
    angles = positions[..., None, None] * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([cos, cos], axis=-1), jnp.concatenate([-sin, sin], axis=-1)


def rotate(x: Float[Array, "b t n h"], cos: Array, sin: Array) -> Float[Array, "b t n h"]:
    """Rotates the pairs (i, i + h/2): Hugging Face's order of the head dimension, not Meta's interleaved one.

    A roll aligns the members of a pair: joining two halves after the arithmetic is several times slower on CPU.
    """
    wide = x.astype(jnp.float32)
    partner = jnp.roll(wide, x.shape[-1] // 2, axis=-1)
    return (wide * cos + partner * sin).astype(x.dtype)
