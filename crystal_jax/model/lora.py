"""What is trained and what is frozen, adapters merged into their kernels, and parameters counted."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from crystal_jax.config import UNQUANTIZED, LoraConfig, QuantizationConfig
from crystal_jax.model.quantize import dequantize_state, is_quantized
from crystal_jax.model.transformer import Transformer


def trainable(lora: LoraConfig) -> type[nnx.Variable]:
    """The variable type that training changes: the adapters if there are any, else every parameter."""
    return nnx.LoRAParam if lora.rank else nnx.Param


def split(model: Transformer, lora: LoraConfig) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """The model's graph, its trainable parameters, and the frozen rest (empty in full training)."""
    graph, state = nnx.split(model)
    params, frozen = nnx.split_state(state, trainable(lora), ...)
    return graph, params, frozen


def merge_adapters(state: nnx.State, lora: LoraConfig, quantization: QuantizationConfig = UNQUANTIZED) -> nnx.State:
    """The parameters of a model without adapters that computes the same: kernel + α/r · A B.

    `state` holds both kinds of parameters. The sum is made in float32 and kept in the kernel's type. A quantised base
    is dequantised first, to the numbers that the adapters were trained on, and stays so.

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
    """Numbers in a state; works on abstract ones too."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state))
