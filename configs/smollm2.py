"""SmolLM2-135M, a pre-trained language model of LLaMA's architecture that comes with a pip package, on `mp20_open`.

Variants: `lora` adapts the pre-trained weights with the paper's task mix and adapters; `scratch` trains the same
architecture from random weights on the same tokens, so that the two curves show the effect of pre-training.
launch/smollm2.sh fetches the weights.

Result:   validation loss after 264,000 tokens: 0.707 nats a token with `lora`, 1.073 from `scratch` (docs/RESULTS.md)
Cost:     on one CPU core 49 minutes with `lora`, 65 from `scratch`, which takes 17 GB of memory
Command:  crystal-jax train --config=configs/smollm2.py:lora --workdir=runs/smollm2/lora
"""

import ml_collections

VARIANTS = ("lora", "scratch")


def get_config(variant: str = "lora") -> ml_collections.ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"Unknown variant {variant!r}; expected one of {', '.join(VARIANTS)}")
    lora = variant == "lora"
    config = ml_collections.ConfigDict()
    config.model = dict(
        embed_dim=576,
        mlp_dim=1536,
        num_layers=30,
        num_heads=9,
        num_kv_heads=3,
        head_dim=64,
        norm_eps=1e-5,
        rope_theta=100_000.0,
        tie_embeddings=True,
        dtype="float32",
    )
    config.lora = dict(rank=8 if lora else 0, alpha=32.0, targets=("q", "v"), dropout=0.05)
    config.execution = dict(scan_layers=True, remat=False, loss_chunk=128)
    config.text = dict(version="plain", coordinates="fractional")
    config.tokenizer = dict(name="huggingface", path="models/smollm2/tokenizer.json")
    config.task = dict(infill=0.34, conditions=True, translate=True, order="stored", loss="completion")
    # A row holds one or two crystals: most take 150 to 420 tokens, digit by digit.
    config.data = dict(directory="data/mp20/mp20_open", seq_len=512, batch_size=4, packing_bins=32, seed=0, shards=1)
    config.optimizer = dict(
        name="adamw",
        peak_lr=1e-3,
        end_lr=0.0,
        warmup_steps=20,
        b1=0.9,
        b2=0.95,
        weight_decay=0.0 if lora else 0.1,
        clip_norm=1.0,
        accumulate=1,
    )
    config.train = dict(
        num_steps=150,
        log_every=5,
        eval_every=25,
        save_every=25,
        eval_batches=4,
        max_to_keep=2,
        seed=0,
        best_metric="val_loss",
        eval_num_samples=0,
    )
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.base = "models/smollm2" if lora else ""
    return config
