"""LoRA: splits trainable from frozen parameters, merges adapters into kernels, and counts parameters."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from crystal_jax.config import UNQUANTIZED, LoraConfig, QuantizationConfig
from crystal_jax.model.frozen_base.quantize import dequantize_state, is_quantized
from crystal_jax.model.transformer import Transformer


def trainable(lora: LoraConfig) -> type[nnx.Variable]:
    """Returns the variable type that training updates: adapters if there are any, else all parameters."""
    return nnx.LoRAParam if lora.rank else nnx.Param


def split(model: Transformer, lora: LoraConfig) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """Returns the model's graph, its trainable parameters, and the frozen ones (empty in full training)."""
    graph, state = nnx.split(model)
    params, frozen = nnx.split_state(state, trainable(lora), ...)
    return graph, params, frozen


def merge_adapters(state: nnx.State, lora: LoraConfig, quantization: QuantizationConfig = UNQUANTIZED) -> nnx.State:
    """Returns the parameters of an equivalent model without adapters: kernel + α/r · A B.

    `state` holds base and adapters. The sum is computed in float32 and stored in the kernel's dtype. A quantised base
    is first dequantised, to the values that the adapters were trained on, and the result is not quantised.

    Raises:
        ValueError: the base is quantised and `quantization` does not say how, or the other way round.
    """
    if is_quantized(state) != (quantization.kind != "none"):
        raise ValueError(f"quantization.kind={quantization.kind!r} is not how this base is kept")
    if is_quantized(state):
        state = dequantize_state(state, quantization)
    tree = nnx.to_pure_dict(state)

    def visit(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        if "lora_a" not in node:
            return {name: visit(child) for name, child in node.items()}
        kernel, a, b = node["kernel"], node["lora_a"], node["lora_b"]
        layers, rank = a.shape[0], a.shape[-1]
        delta = jnp.matmul(a.reshape(layers, -1, rank), b.reshape(layers, rank, -1)).reshape(kernel.shape)
        others = {name: child for name, child in node.items() if name not in ("kernel", "lora_a", "lora_b")}
        return others | {"kernel": (kernel.astype(jnp.float32) + lora.scale * delta).astype(kernel.dtype)}

    return nnx.State(jax.tree.map(nnx.Param, visit(tree)))


def count_parameters(state: nnx.State) -> int:
    """Returns the number of parameters in a state; the state may be abstract."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state))
