"""Small configurations that several tests share."""

import dataclasses
from typing import Any

from crystal_jax.config import ExecutionConfig, LlamaConfig, LoraConfig

# Odd, pairwise different sizes: a swapped axis cannot pass by accident.
TINY = LlamaConfig(
    vocab_size=97,
    embed_dim=48,
    mlp_dim=80,
    num_layers=3,
    num_heads=6,
    num_kv_heads=2,
    head_dim=8,
    norm_eps=3e-3,
    rope_theta=500.0,
    tie_embeddings=False,
    dtype="float32",
)
NO_LORA = LoraConfig(rank=0, alpha=1.0, targets=())
LORA = LoraConfig(rank=4, alpha=8.0, targets=("q", "k", "v", "o"))
UNROLLED = ExecutionConfig(scan_layers=False, remat=False)
SCANNED = ExecutionConfig(scan_layers=True, remat=True)


def training_config(directory: str, **changes: dict[str, Any]) -> dict[str, Any]:
    """A configuration tree that trains in seconds; `changes` are merged into its sections."""
    model = {k: v for k, v in dataclasses.asdict(TINY).items() if k != "vocab_size"}
    tree: dict[str, Any] = dict(
        model={**model, "embed_dim": 32, "num_heads": 4, "num_layers": 2},
        lora=dict(rank=0, alpha=8.0, targets=("q", "v")),
        execution=dict(scan_layers=False, remat=False),
        text=dict(version="v2", coordinates="fractional"),
        tokenizer=dict(name="atom_coordinate"),
        task=dict(infill=0.3, conditions=True, translate=True, permute=False, loss="completion"),
        data=dict(directory=directory, seq_len=384, batch_size=4, packing_bins=4, seed=0),
        optimizer=dict(
            peak_lr=3e-3,
            end_lr=0.0,
            warmup_steps=2,
            b1=0.9,
            b2=0.99,
            weight_decay=0.01,
            clip_norm=1.0,
            accumulate=1,
        ),
        train=dict(num_steps=6, log_every=1, eval_every=3, save_every=3, eval_batches=1, keep=3, seed=0),
        mesh=dict(data=2, fsdp=2, tensor=1),
    )
    for section, values in changes.items():
        tree[section] = {**tree[section], **values} if isinstance(values, dict) else values
    return tree
