"""The floating-point operations that a training step requires, to compute model FLOPs utilisation."""

from __future__ import annotations

from crystal_jax.config import LoraConfig, ModelConfig


def train_flops_per_token(cfg: ModelConfig, lora: LoraConfig) -> float:
    """Returns the floating-point operations of a training step per token, with a multiply-add counted as two.

    A product with W weights takes 2 W operations in the forward pass, 2 W for the gradient of its input, and 2 W for
    the gradient of its weights, which frozen weights do not need. The total is 6 N for full training, and 4 N + 6 A
    with A weights in adapters. N counts the weights of the projections and of the output projection. Not counted, so
    that the figure is a lower bound: products of queries with keys and of attention weights with values (2 % for a 7B
    at 512 tokens), norms, rotary embedding, the optimizer, and operations repeated to save memory.
    """
    frozen, adapters = _weights(cfg, lora)
    return 4.0 * frozen + 6.0 * adapters if lora.rank else 6.0 * frozen


def projection_sizes(cfg: ModelConfig) -> dict[str, tuple[int, int]]:
    """Returns the numbers of inputs and outputs of each projection of a block."""
    heads, kv_heads = cfg.num_heads * cfg.head_dim, cfg.num_kv_heads * cfg.head_dim
    sizes = {
        "q": (cfg.embed_dim, heads),
        "k": (cfg.embed_dim, kv_heads),
        "v": (cfg.embed_dim, kv_heads),
        "o": (heads, cfg.embed_dim),
        "gate": (cfg.embed_dim, cfg.mlp_dim),
        "up": (cfg.embed_dim, cfg.mlp_dim),
        "down": (cfg.mlp_dim, cfg.embed_dim),
    }
    return {name: sizes[name] for name in cfg.projections}


def _weights(cfg: ModelConfig, lora: LoraConfig) -> tuple[int, int]:
    """Returns the numbers of weights that multiply each token: those of the base, and those of the adapters."""
    sizes = projection_sizes(cfg)
    block = sum(inputs * outputs for inputs, outputs in sizes.values())
    adapters = sum(lora.rank * sum(sizes[name]) for name in lora.targets)
    return cfg.num_layers * block + cfg.embed_dim * cfg.vocab_size, cfg.num_layers * adapters
