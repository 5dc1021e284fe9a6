"""crystal_small: 28 million parameters, trained from scratch on one GPU in minutes, with the recipe of crystal-tiny.

The model is wider and deeper than crystal-tiny, in bfloat16, with ten times the tokens per step.
`benchmarks/gpu/run.sh --parts=small` trains it for the minutes that a card is available, and sets `train.num_steps`
from the speed that it measures.

Variants: `scratch` starts from random weights; `continued` starts from the weights of an earlier run (--config.base),
with a smaller learning rate and its own decay.

Result:   not trained yet (docs/GPU.md)
Hardware: one H100 or H200
Cost:     not measured yet (docs/GPU.md)
Command:  crystal-jax train --config=configs/crystal_small.py:scratch --workdir=runs/crystal_small
"""

import ml_collections

VARIANTS = ("scratch", "continued")


def get_config(variant: str = "scratch") -> ml_collections.ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"Unknown variant {variant!r}; expected one of {', '.join(VARIANTS)}")
    scratch = variant == "scratch"
    config = ml_collections.ConfigDict()
    config.model = dict(
        embed_dim=512,
        mlp_dim=1408,
        num_layers=8,
        num_heads=8,
        num_kv_heads=8,
        head_dim=64,
        norm_eps=1e-5,
        rope_theta=10_000.0,
        tie_embeddings=False,
        dtype="bfloat16",
    )
    config.lora = dict(rank=0, alpha=32.0, targets=(), dropout=0.0)
    config.execution = dict(scan_layers=False, remat=False, loss_chunk=0, attention="einsum")
    config.text = dict(version="composition_first", coordinates="fractional")
    config.tokenizer = dict(name="atom_coordinate", path="")
    config.task = dict(infill=0.34, conditions=True, translate=True, order="sorted", loss="all")
    config.data = dict(directory="data/mp20/mp20_open", seq_len=192, batch_size=128, packing_bins=64, seed=0, shards=1)
    config.optimizer = dict(
        name="muon",
        peak_lr=4e-3 if scratch else 1e-3,
        end_lr=0.0,
        warmup_steps=100,
        b1=0.9,
        b2=0.99,
        weight_decay=0.1,
        clip_norm=1.0,
        accumulate=1,
    )
    config.train = dict(
        num_steps=4_000,
        log_every=20,
        eval_every=400,
        save_every=400,
        eval_batches=4,
        max_to_keep=2,
        seed=0 if scratch else 1,
        best_metric="val_loss",
        eval_num_samples=0,
        peak_tflops=989.0,  # of an H100
        token_features=0.8 if scratch else 0.0,
        dropout=0.1,
    )
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.base = "" if scratch else "runs/crystal_small/exported"
    return config
