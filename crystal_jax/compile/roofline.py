"""What a step must compute and read, by the equations of the model: what the compiler's programs are compared with.

Products of matrices only; a multiplication and an addition are two operations. Attention is counted over all pairs of
places of a row, as it is computed.
"""

from __future__ import annotations

import math
from typing import Any

import jax
from flax import nnx

from crystal_jax.config import Experiment, ModelConfig
from crystal_jax.model.flops import projection_sizes


def train_flops(experiment: Experiment) -> float:
    """Operations of a training step of the whole batch, on all chips together.

    Each product is computed forward, and once more for the gradient of its input. A third time for the gradient of its
    weights, where they are trained. And with recomputation a time more for the backward pass, unless its output is
    kept; but not the last of a block, `down`: no gradient needs its output. Attention's two products have two gradients
    each; of kept products, the policy has splash kernels' and not the einsums'.
    """
    cfg, lora, execution = experiment.model, experiment.lora, experiment.execution
    remat = execution.remat and not execution.keep_products
    mixed_again = execution.remat and not (execution.keep_products and execution.attention == "splash")
    tokens = experiment.data.batch_size * experiment.data.seq_len
    trained = lora.rank == 0
    total = 0.0
    for name, (inputs, outputs) in projection_sizes(cfg).items():
        recomputed = remat and name != "down"
        total += cfg.num_layers * 2 * inputs * outputs * (2 + trained + recomputed)
        if name in lora.targets and not trained:
            total += cfg.num_layers * 2 * lora.rank * (inputs + outputs) * (3 + recomputed)
    total += 2 * cfg.embed_dim * cfg.vocab_size * (2 + trained)
    pairs = 4 * experiment.data.seq_len * cfg.num_heads * cfg.head_dim
    total += cfg.num_layers * pairs * (3 + mixed_again)
    return tokens * total


def decode_flops(cfg: ModelConfig, *, rows: int, capacity: int, columns: int, adapter_ranks: dict[str, int]) -> float:
    """Operations of one token in each of `rows` rows; attention goes over the whole cache, whatever is in it yet."""
    total = 0.0
    for name, (inputs, outputs) in projection_sizes(cfg).items():
        total += 2 * inputs * outputs + 2 * adapter_ranks.get(name, 0) * (inputs + outputs)
    total = cfg.num_layers * (total + 4 * capacity * cfg.num_heads * cfg.head_dim)
    return rows * (total + 2 * cfg.embed_dim * columns)


def bytes_on_a_chip(tree: Any) -> int:
    """Of abstract arrays, what one device holds."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    )


def decode_bytes(states: tuple[nnx.State, ...], cache: Any) -> int:
    """What one token must read on a chip: the blocks' weights and the cache. Of the embedding it reads single rows."""
    return sum(bytes_on_a_chip(state["blocks"]) for state in states) + bytes_on_a_chip(cache)
