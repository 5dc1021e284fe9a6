"""crystal-tiny, the model that ships with the package: 3.1 million parameters, trained from scratch on `mp20_open`.

The tasks are the paper's mix, and prompts count in the loss as published. The model takes prompts with a formula, a
space group or an energy above the hull, and it can infill. A text starts with the composition (format
`composition_first`), so that the composition is decided first. The sites are sorted, so that the last site tells which
positions are taken.

Variants: `scratch` makes the released model; `wyckoff` is the same with texts by symmetry, which are shorter. `lora`
adapts it to the crystals in --config.data.directory; `full` trains all of its weights on them.

Result:   `scratch`: validation loss 1.29 nats a token; 85.1 % of 10,000 samples valid at temperature 1 (the card,
          crystal_jax/released/crystal-tiny/README.md, has more, and lists the runs that made the weights)
Cost:     `scratch`: 248 minutes on one CPU core
Command:  crystal-jax train --config=configs/crystal_tiny.py:scratch --workdir=runs/crystal-tiny
"""

import ml_collections

VARIANTS = ("scratch", "wyckoff", "lora", "full")


def get_config(variant: str = "scratch") -> ml_collections.ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"Unknown variant {variant!r}; expected one of {', '.join(VARIANTS)}")
    scratch, lora, wyckoff = variant in ("scratch", "wyckoff"), variant == "lora", variant == "wyckoff"
    config = ml_collections.ConfigDict()
    config.model = dict(
        embed_dim=192,
        mlp_dim=512,
        num_layers=6,
        num_heads=6,
        num_kv_heads=6,
        head_dim=32,
        norm_eps=1e-5,
        rope_theta=10_000.0,
        tie_embeddings=False,
        dtype="float32",
    )
    config.lora = dict(rank=8 if lora else 0, alpha=32.0, targets=("q", "k", "v", "o"), dropout=0.0)
    config.execution = dict(scan_layers=False, remat=False, loss_chunk=0)
    config.text = dict(version="wyckoff" if wyckoff else "composition_first", coordinates="fractional")
    config.tokenizer = dict(name="wyckoff" if wyckoff else "atom_coordinate", path="")
    config.task = dict(infill=0.34, conditions=True, translate=True, order="sorted", loss="all")
    config.data = dict(directory="data/mp20/mp20_open", seq_len=192, batch_size=12, packing_bins=64, seed=0, shards=1)
    config.optimizer = dict(
        name="adamw" if lora else "muon",
        peak_lr=5e-3 if scratch or lora else 1e-3,
        end_lr=0.0,
        warmup_steps=100,
        b1=0.9,
        b2=0.99,
        weight_decay=0.0 if lora else 0.1,
        clip_norm=1.0,
        accumulate=1,
    )
    config.train = dict(
        num_steps=16_000 if scratch else 500,
        log_every=20,
        eval_every=500 if scratch else 100,
        save_every=500 if scratch else 100,
        eval_batches=24,
        max_to_keep=2,
        seed=0,
        best_metric="val_loss",
        eval_num_samples=0,
        token_features=0.8 if scratch and not wyckoff else 0.0,
        dropout=0.1 if scratch else 0.0,
    )
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.base = "" if scratch else "crystal-tiny"
    return config
