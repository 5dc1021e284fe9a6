"""A LLaMA-2 of 1.07 million parameters with the atom+coordinate tokenizer, trained on `mp20_open`, composition first.

Variants: `scratch` generates unconditionally. `paper` has the paper's task mix, so that the model takes prompts with a
formula, a space group or an energy above the hull, and can infill. `lora` adapts the trained model in
--config.base=WORKDIR to other data.

Result:   `scratch`: validation loss 1.72 nats a token; 83.7 % of 1,000 samples valid at temperature 1, 87.7 % with
          top-p 0.9 (docs/RESULTS.md)
Cost:     `scratch`: 55 minutes on 2 CPU cores
Command:  crystal-jax train --config=configs/mp20_open.py:scratch --workdir=runs/mp20_open
"""

import ml_collections

VARIANTS = ("scratch", "paper", "lora")


def get_config(variant: str = "scratch") -> ml_collections.ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"Unknown variant {variant!r}; expected one of {', '.join(VARIANTS)}")
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
    config.lora = dict(rank=8 if variant == "lora" else 0, alpha=32.0, targets=("q", "k", "v", "o"), dropout=0.0)
    config.execution = dict(scan_layers=False, remat=False, loss_chunk=0)
    config.text = dict(version="composition_first", coordinates="fractional")
    config.tokenizer = dict(name="atom_coordinate", path="")
    config.task = dict(infill=0.0, conditions=False, translate=True, order="sorted", loss="completion")
    config.data = dict(directory="data/mp20/mp20_open", seq_len=128, batch_size=12, packing_bins=64, seed=0, shards=1)
    config.optimizer = dict(
        name="adamw" if variant == "lora" else "muon",
        peak_lr=3e-3 if variant == "lora" else 5e-3,
        end_lr=0.0,
        warmup_steps=100,
        b1=0.9,
        b2=0.99,
        weight_decay=0.01 if variant == "lora" else 0.1,
        clip_norm=1.0,
        accumulate=1,
    )
    config.train = dict(
        num_steps=22_000,
        log_every=20,
        eval_every=1_000,
        save_every=1_000,
        eval_batches=32,
        max_to_keep=2,
        seed=0,
        best_metric="val_loss",
        eval_num_samples=0,
        token_features=0.0 if variant == "lora" else 0.8,
    )
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.base = ""
    if variant == "paper":
        config.task = dict(infill=0.34, conditions=True, translate=True, order="sorted", loss="completion")
        # Prompts are spelled out, and an infilling prompt holds a whole crystal.
        config.data.seq_len = 256
        config.data.batch_size = 6
    if variant == "lora":
        config.train.num_steps = 2_000
    return config
