"""The memory of a frozen base model, computed from its configuration alone."""

from __future__ import annotations

import math

import jax
from flax import nnx

from crystal_jax.config import ExecutionConfig, LoraConfig, ModelConfig, QuantizationConfig
from crystal_jax.model.architectures import make_model
from crystal_jax.model.frozen_base.lora import split


def abstract_base(cfg: ModelConfig, quantization: QuantizationConfig) -> nnx.State:
    """Returns shapes and dtypes of the parameters that adapters leave frozen; no array is created."""
    lora = LoraConfig(rank=1, alpha=1.0, targets=("q",))
    execution = ExecutionConfig(scan_layers=True, remat=True)
    model = nnx.eval_shape(lambda: make_model(cfg, lora, execution, quantization, rngs=nnx.Rngs(0)))
    return split(model, lora)[2]


def gigabytes(state: nnx.State) -> float:
    """Returns the size of a state in memory, in units of 10⁹ bytes; the state may be abstract."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)) / 1e9
