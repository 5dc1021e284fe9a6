"""Segmented attention on TPU by JAX's splash kernels, which keep the attention weights in on-chip memory."""

from __future__ import annotations

import jax
from jaxtyping import Array, Float, Int

from crystal_jax.config import SPLASH_TOKENS
from crystal_jax.errors import UserError
from crystal_jax.sharding import BATCH, HEADS, on_each_device, row_parts

# Name, for checkpoint policies, of the kernels' output and of the logarithms of its sums.
KEPT = "splash"
# A tile of 512 x 512 scores takes 1 MiB of on-chip memory; tiles above the diagonal are skipped.
_TILES = (512, 256, SPLASH_TOKENS)


def attend_segments(
    q: Float[Array, "b t n h"],
    keys: Float[Array, "b k t h"],
    values: Float[Array, "b k t h"],
    segments: Int[Array, "b t"],
    *,
    interpret: bool = False,
) -> Float[Array, "b t n h"]:
    """Returns attention of each token to its own segment up to itself; padding is a segment like any other.

    On a mesh, each device has its own rows and heads. The number of tokens must be a multiple of `SPLASH_TOKENS`. With
    `interpret`, the kernels run on CPU, slowly.

    Raises:
        UserError: the rows do not divide over the devices that split them.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and q.shape[0] % (parts := row_parts(mesh)):
        raise UserError(
            f"execution.attention='splash': the {q.shape[0]} rows of a micro-batch do not divide over the {parts} "
            "devices of 'data' x 'fsdp'; choose data.batch_size / optimizer.accumulate a multiple, or 'einsum'"
        )
    # Imported here: Pallas is slow to import, and only TPUs need it.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    t = q.shape[1]
    tile = next(size for size in _TILES if t % size == 0)
    tiles = splash.BlockSizes(
        block_q=tile, block_kv=tile, block_q_dkv=tile, block_kv_dkv=tile, block_q_dq=tile, block_kv_dq=tile
    )

    def on_a_device(q: Array, keys: Array, values: Array, segments: Array) -> Array:
        kernel = splash.make_splash_mha(
            splash.MultiHeadMask([splash.CausalMask((t, t))] * q.shape[1]),
            block_sizes=tiles,
            head_shards=1,
            q_seq_shards=1,
            residual_checkpoint_name=KEPT,
            interpret=interpret,
        )
        return jax.vmap(lambda q, k, v, ids: kernel(q, k, v, splash.SegmentIds(ids, ids)))(q, keys, values, segments)

    scaled = (q * q.shape[-1] ** -0.5).swapaxes(1, 2)
    specs = HEADS, HEADS, HEADS, BATCH
    each = on_each_device(on_a_device, in_specs=specs, out_specs=HEADS, check=False)
    return each(scaled, keys, values, segments).swapaxes(1, 2)
