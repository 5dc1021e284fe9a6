"""The memory that a frozen base takes, known before any of it exists."""

from __future__ import annotations

import math

import jax
from flax import nnx

from crystal_jax.config import ExecutionConfig, LlamaConfig, LoraConfig, QuantizationConfig
from crystal_jax.model.llama import Llama
from crystal_jax.model.lora import split


def abstract_base(cfg: LlamaConfig, quantization: QuantizationConfig) -> nnx.State:
    """Shapes and types of the parameters that are frozen under adapters; nothing is computed."""
    lora = LoraConfig(rank=1, alpha=1.0, targets=("q",))
    execution = ExecutionConfig(scan_layers=True, remat=True)
    model = nnx.eval_shape(lambda: Llama(cfg, lora, execution, quantization, rngs=nnx.Rngs(0)))
    return split(model, lora)[2]


def gigabytes(state: nnx.State) -> float:
    """Size of a state in memory, in units of 10⁹ bytes; works on abstract ones too."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)) / 1e9
