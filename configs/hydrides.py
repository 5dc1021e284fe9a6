"""Adapters against full fine-tuning on a chemistry that a small model has never seen: the hydrides of `mp20_open`.

Variants: `base` is a model of 1.07 million parameters, trained without any crystal that contains hydrogen, with sites
in stored order. `lora` and `full` fine-tune it on the crystals with hydrogen only: `lora` trains adapters on the frozen
base, `full` trains all weights. Both read the base from runs/hydrides/base, or from --config.base=WORKDIR. `scratch`
trains on the same crystals from random weights.

Result:   `base`: validation loss 2.26 nats a token. On hydrides, after 200 steps: adapters 3.20 (rank 1 on q) to 2.61
          (rank 64 on q, k, v, o), `full` 2.24, `scratch` 3.67 (docs/RESULTS.md)
Cost:     `base`: 28 minutes on one CPU core, interruptions included; the others about a minute each
Command:  crystal-jax train --config=configs/hydrides.py:base --workdir=runs/hydrides/base
          crystal-jax train --config=configs/hydrides.py:lora --workdir=runs/hydrides/lora
          crystal-jax sweep --sweep=configs/sweeps/hydrides.py --output=runs/hydrides/sweep
"""

import ml_collections

VARIANTS = ("base", "lora", "full", "scratch")
_HELD_OUT = ("H",)


def get_config(variant: str = "base") -> ml_collections.ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"Unknown variant {variant!r}; expected one of {', '.join(VARIANTS)}")
    base, lora = variant == "base", variant == "lora"
    config = ml_collections.ConfigDict()
    config.model = dict(
        embed_dim=128,
        mlp_dim=344,
        num_layers=4,
        num_heads=4,
        num_kv_heads=4,
        head_dim=32,
        norm_eps=1e-5,
        rope_theta=10_000.0,
        tie_embeddings=False,
        dtype="float32",
    )
    config.lora = dict(rank=8 if lora else 0, alpha=4.0, targets=("q", "v"), dropout=0.0, rank_stabilized=True)
    config.execution = dict(scan_layers=False, remat=False, loss_chunk=0)
    config.text = dict(version="plain", coordinates="fractional")
    config.tokenizer = dict(name="atom_coordinate", path="")
    config.task = dict(infill=0.0, conditions=False, translate=True, order="stored", loss="completion")
    config.data = dict(
        directory="data/mp20/mp20_open",
        seq_len=128,
        batch_size=12,
        packing_bins=64,
        seed=0,
        shards=1,
        exclude_elements=_HELD_OUT if base else (),
        include_elements=() if base else _HELD_OUT,
    )
    config.optimizer = dict(
        name="muon" if variant in ("base", "scratch") else "adamw",
        peak_lr={"base": 5e-3, "lora": 3e-3, "full": 3e-4, "scratch": 5e-3}[variant],
        end_lr=0.0,
        warmup_steps=100 if base else 20,
        b1=0.9,
        b2=0.99,
        weight_decay=0.1 if variant in ("base", "scratch") else 0.0,
        clip_norm=1.0,
        accumulate=1,
    )
    config.train = dict(
        num_steps=4_000 if base else 200,
        log_every=20,
        eval_every=500 if base else 20,
        save_every=500 if base else 20,
        eval_batches=32 if base else 8,
        max_to_keep=1,
        seed=0,
        best_metric="val_loss",
        eval_num_samples=0,
        token_features=0.0,
    )
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.base = "runs/hydrides/base" if variant in ("lora", "full") else ""
    return config
