"""The three LLaMA-2 model sizes (Touvron et al., arXiv:2307.09288, and the released config files)."""

from __future__ import annotations

from collections.abc import Mapping

from crystal_jax.config import LlamaConfig


def _llama2(*, embed_dim: int, mlp_dim: int, num_layers: int, num_heads: int, num_kv_heads: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=32_000,
        embed_dim=embed_dim,
        mlp_dim=mlp_dim,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=128,
        norm_eps=1e-5,
        rope_theta=10_000.0,
        tie_embeddings=False,
        dtype="bfloat16",
    )


LLAMA2: Mapping[str, LlamaConfig] = {
    "7b": _llama2(embed_dim=4096, mlp_dim=11_008, num_layers=32, num_heads=32, num_kv_heads=32),
    "13b": _llama2(embed_dim=5120, mlp_dim=13_824, num_layers=40, num_heads=40, num_kv_heads=40),
    "70b": _llama2(embed_dim=8192, mlp_dim=28_672, num_layers=80, num_heads=64, num_kv_heads=8),
}
