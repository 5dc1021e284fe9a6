"""Computes the operations and bytes of a step from the model's equations, for comparison with compiled programs.

Only matrix products count; a multiplication and an addition are two operations. Attention counts all pairs of positions
of a row, as it is computed.
"""

from __future__ import annotations

import math
from typing import Any

import jax
from flax import nnx

from crystal_jax.config import Experiment, ModelConfig
from crystal_jax.model.flops import projection_sizes


def train_flops(experiment: Experiment) -> float:
    """Returns the operations of a training step of the whole batch, on all chips together.

    Each matmul runs once forward and once for the gradient of its input. Trained weights need a third matmul for their
    gradient. With rematerialisation each matmul runs once more in the backward pass, except those saved by the policy
    and `down`, whose output no gradient uses. Attention's two products have two gradients each. The policy saves
    attention's output with splash kernels but not with einsums.
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
    """Returns the operations of one token in each of `rows` rows; attention reads the whole cache, filled or not."""
    total = 0.0
    for name, (inputs, outputs) in projection_sizes(cfg).items():
        total += 2 * inputs * outputs + 2 * adapter_ranks.get(name, 0) * (inputs + outputs)
    total = cfg.num_layers * (total + 4 * capacity * cfg.num_heads * cfg.head_dim)
    return rows * (total + 2 * cfg.embed_dim * columns)


def bytes_on_a_chip(tree: Any) -> int:
    """Returns the bytes of abstract arrays on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    )


def decode_bytes(states: tuple[nnx.State, ...], cache: Any) -> int:
    """Returns the bytes that one token must read on a chip: the blocks' weights and the cache, without the few rows of
    the embedding.
    """
    return sum(bytes_on_a_chip(state["blocks"]) for state in states) + bytes_on_a_chip(cache)
