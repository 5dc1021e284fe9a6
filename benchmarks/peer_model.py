"""The architecture of a model of ours, in the words of Hugging Face."""

from __future__ import annotations

from typing import Any

import transformers

from crystal_jax.config import LlamaConfig


def llama_config(cfg: LlamaConfig, **changes: Any) -> transformers.LlamaConfig:
    """Returns Hugging Face's configuration of this architecture; `changes` are further options of it."""
    return transformers.LlamaConfig(
        vocab_size=cfg.vocab_size,
        hidden_size=cfg.embed_dim,
        intermediate_size=cfg.mlp_dim,
        num_hidden_layers=cfg.num_layers,
        num_attention_heads=cfg.num_heads,
        num_key_value_heads=cfg.num_kv_heads,
        head_dim=cfg.head_dim,
        rms_norm_eps=cfg.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": cfg.rope_theta},
        tie_word_embeddings=cfg.tie_embeddings,
        **changes,
    )
