"""Runs every feature of training in about a minute, to check that all of them work on this machine.

The features are two data streams, two micro-batches, scanned layers, all tasks, validation by token class, evaluated
samples, skipping of loss spikes, and the best checkpoint. Variants: `scratch`; `lora`, on the base in
--config.base=WORKDIR, in 8 bits, with dropout. `crystal-jax prepare --dataset=amcsd --max_entries=256` makes the data
set and prints its path, which goes to --config.data.directory.

Result:   a validation loss that falls; samples that are mostly invalid
Cost:     about a minute on 2 CPU cores
Command:  launch/local.sh --processes=2 --devices=2 -- train --config=configs/smoke.py --workdir=runs/smoke
"""

import ml_collections

VARIANTS = ("scratch", "lora")


def get_config(variant: str = "scratch") -> ml_collections.ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"Unknown variant {variant!r}; expected one of {', '.join(VARIANTS)}")
    lora = variant == "lora"
    config = ml_collections.ConfigDict()
    config.model = dict(
        embed_dim=64,
        mlp_dim=192,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        norm_eps=1e-5,
        rope_theta=10_000.0,
        tie_embeddings=False,
        dtype="float32",
        vocab_size=1_152,  # the tokenizer's 1,081 and some: divides over 2 to 128 devices
    )
    config.lora = dict(
        rank=4 if lora else 0, alpha=8.0, targets=("q", "v"), dropout=0.05 if lora else 0.0, rank_stabilized=False
    )
    config.quantize = dict(kind="int8" if lora else "none", block_size=64)
    config.execution = dict(scan_layers=True, remat=True)
    config.text = dict(version="plain", coordinates="fractional")
    config.tokenizer = dict(name="atom_coordinate", path="")
    config.task = dict(infill=0.3, conditions=True, translate=True, order="stored", loss="completion")
    config.data = dict(directory="data/mp20/amcsd_256", seq_len=256, batch_size=8, packing_bins=16, seed=0, shards=2)
    config.optimizer = dict(
        name="adamw",
        peak_lr=3e-3,
        end_lr=0.0,
        warmup_steps=10,
        b1=0.9,
        b2=0.99,
        weight_decay=0.01,
        clip_norm=1.0,
        accumulate=2,
    )
    config.train = dict(
        num_steps=40,
        log_every=2,
        eval_every=20,
        save_every=20,
        eval_batches=2,
        max_to_keep=2,
        seed=0,
        best_metric="sample_structural_validity",
        eval_num_samples=8,
        peak_tflops=0.0,
    )
    config.guard = dict(window=16, loss_factor=2.0, norm_factor=10.0, patience=5)
    config.mesh = dict(data=-1, fsdp=2, tensor=1)
    config.base = ""
    return config
