"""LLaMA-2 13B with LoRA on MP-20.

Variants: `paper` is the published recipe (Gruver et al., ICLR 2024): 256 crystals a step, 44 epochs, prompts in the
loss, angles truncated. `tpu` has as many epochs, in steps of about 234 crystals, with the loss on completions only and
the corrected text format. `gpu` is `tpu` for one H100 or H200, in 8 micro-batches.

Packing determines the crystals per step. With LLaMA-2's tokens and the paper's tasks an example of `mp20_open` has 269
tokens on average and 467 at most; measured, a row of 512 holds 1.61 crystals (16 bins), a row of 1,024 holds 3.65 (64
bins). The number of steps is epochs x 27,136 crystals of MP-20 / crystals per step.

Result:   the paper reports for 13B at temperature 1.0 / 0.7: structure valid 93.3 / 95.5 %, composition valid
          90.0 / 92.4 %, stable by DFT 8.7 / 14.4 %. Ours is not yet trained: the weights could not be downloaded here
Hardware: 16 chips of TPU v5e (4x4), or 16 of v4 (v4-32)
Cost:     an estimate from the compiler's figures (docs/TPU.md), not measured: 1.55 s per step on v5e-16, 2.2 hours
          `gpu`: not measured yet (docs/GPU.md)
Command:  crystal-jax train --config=configs/llama2_13b.py:tpu --workdir=runs/llama2_13b
              --config.base=models/llama2-13b --config.tokenizer.path=models/llama2-13b/tokenizer.model
"""

import dataclasses

import ml_collections

from crystal_jax.model.presets import LLAMA2

VARIANTS = ("paper", "tpu", "gpu")


def get_config(variant: str = "tpu") -> ml_collections.ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"Unknown variant {variant!r}; expected one of {', '.join(VARIANTS)}")
    paper, gpu = variant == "paper", variant == "gpu"
    config = ml_collections.ConfigDict()
    config.model = dataclasses.asdict(LLAMA2["13b"])
    config.lora = dict(rank=8, alpha=32.0, targets=("q", "v"), dropout=0.05)
    config.execution = dict(
        scan_layers=True, remat=True, keep_products=False, attention="einsum", loss_chunk=256 if gpu else 0
    )
    config.text = dict(version="paper" if paper else "plain", coordinates="fractional")
    config.tokenizer = dict(name="llama2", path="models/llama2-13b/tokenizer.model")
    config.task = dict(
        infill=0.34, conditions=True, translate=True, order="stored", loss="all" if paper else "completion"
    )
    config.data = dict(
        directory="data/mp20/mp20",
        seq_len=512 if paper else 1024,
        batch_size=160 if paper else 64,
        packing_bins=16 if paper else 64,
        shards=16,
        seed=0,
    )
    config.optimizer = dict(
        name="adamw",
        peak_lr=5e-4,
        end_lr=0.0,
        warmup_steps=100,
        b1=0.9,
        b2=0.999,
        weight_decay=0.0,
        clip_norm=1.0,
        accumulate=8 if gpu else 1,
    )
    config.train = dict(
        num_steps=4_640 if paper else 5_110,
        log_every=10,
        eval_every=500,
        save_every=500,
        eval_batches=16,
        max_to_keep=3,
        seed=0,
        peak_tflops=989.0 if gpu else 197.0,  # of an H100, or of a v5e
    )
    config.mesh = dict(data=1, fsdp=-1, tensor=1)
    config.base = "models/llama2-13b"
    return config
