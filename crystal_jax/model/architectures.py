"""Builds a model from its configuration."""

from __future__ import annotations

from flax import nnx

from crystal_jax.config import (
    UNQUANTIZED,
    ExecutionConfig,
    Gpt2Config,
    LoraConfig,
    ModelConfig,
    QuantizationConfig,
)
from crystal_jax.model.gpt2 import Gpt2
from crystal_jax.model.llama import Llama
from crystal_jax.model.transformer import Transformer


def make_model(
    cfg: ModelConfig,
    lora: LoraConfig,
    execution: ExecutionConfig,
    quantization: QuantizationConfig = UNQUANTIZED,
    *,
    rngs: nnx.Rngs,
) -> Transformer:
    """Returns a model of the configured architecture, with weights drawn from `rngs`."""
    if isinstance(cfg, Gpt2Config):
        return Gpt2(cfg, lora, execution, quantization, rngs=rngs)
    return Llama(cfg, lora, execution, quantization, rngs=rngs)
