"""The whole way, small, on real crystals: prepare, train, sample, evaluate, report.

Takes measured mineral structures (the American Mineralogist Crystal Structure Database, embedded through the package
larixite), trains a LLaMA-2 of half a million parameters for a minute or two, writes new crystals with it, and
evaluates them. A second run reuses the prepared data and whatever else is finished.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from absl import flags

from crystal_jax.data.prepare import prepare
from crystal_jax.evaluate.run import evaluate
from crystal_jax.report.html import write_report
from crystal_jax.sample.run import sample
from crystal_jax.train.run import train


def define_flags(flag_values: flags.FlagValues) -> None:
    """The command's flags."""
    flags.DEFINE_string("output", "demo", "Directory for everything the demo makes.", flag_values=flag_values)
    flags.DEFINE_integer("num_samples", 256, "How many crystals to write.", flag_values=flag_values)
    flags.DEFINE_integer("num_steps", 500, "How long to train.", flag_values=flag_values)
    flags.DEFINE_integer("max_entries", 1500, "Mineral structures to use, at most 4,634.", flag_values=flag_values)
    flags.DEFINE_integer("seed", 0, "Of the samples.", flag_values=flag_values)


def main(flag_values: flags.FlagValues) -> None:
    """Entry of `crystal-jax demo`."""
    demo(
        Path(flag_values.output),
        num_samples=flag_values.num_samples,
        num_steps=flag_values.num_steps,
        max_entries=flag_values.max_entries,
        seed=flag_values.seed,
    )


def demo(output: Path, *, num_samples: int, num_steps: int, max_entries: int, seed: int) -> Path:
    """Runs all stages below `output` and returns the path of the report."""
    print("1/5 prepare: measured mineral structures (AMCSD)", flush=True)
    data = prepare("amcsd", data_dir=output / "data", max_entries=max_entries)
    print("2/5 train: a small LLaMA-2 from scratch", flush=True)
    workdir = output / "train"
    train(demo_config(data, num_steps=num_steps), workdir=workdir)
    print("3/5 sample: new crystals under the grammar", flush=True)
    samples = sample(workdir, output=output / "samples", num_samples=num_samples, seed=seed)
    print("4/5 evaluate", flush=True)
    evaluation = output / "evaluation"
    result = evaluate(samples, output=evaluation, reference=f"{data}:test", train_reference=f"{data}:train")
    print("5/5 report", flush=True)
    report = write_report(evaluation, training_log=workdir / "metrics.jsonl")
    rate = result["validity"]
    print(f"\n{rate['hits']} of {rate['total']} samples are valid.")
    for what, path in (
        ("report", report),
        ("metrics", evaluation / "metrics.json"),
        ("one row a sample", evaluation / "structures.csv"),
        ("samples", samples),
        ("CIF files", samples.parent / "cif"),
        ("trained model", workdir),
    ):
        print(f"  {what:<18}{path}")
    return report


def demo_config(data: Path, *, num_steps: int) -> dict[str, Any]:
    """The demo's training; it stands here and not in configs/ because it must work from an installed package."""
    return dict(
        model=dict(
            embed_dim=96,
            mlp_dim=256,
            num_layers=3,
            num_heads=3,
            num_kv_heads=3,
            head_dim=32,
            norm_eps=1e-5,
            rope_theta=10_000.0,
            tie_embeddings=False,
            dtype="float32",
        ),
        lora=dict(rank=0, alpha=32.0, targets=("q", "k", "v", "o")),
        execution=dict(scan_layers=False, remat=False),
        text=dict(version="v2", coordinates="fractional"),
        tokenizer=dict(name="atom_coordinate"),
        task=dict(infill=0.0, conditions=False, translate=True, order="stored", loss="completion"),
        data=dict(directory=str(data), seq_len=128, batch_size=16, packing_bins=32, seed=0),
        optimizer=dict(
            peak_lr=5e-3,
            end_lr=0.0,
            warmup_steps=50,
            b1=0.9,
            b2=0.98,
            weight_decay=0.01,
            clip_norm=1.0,
            accumulate=1,
        ),
        train=dict(num_steps=num_steps, log_every=10, eval_every=100, save_every=100, eval_batches=4, keep=2, seed=0),
        mesh=dict(data=-1, fsdp=1, tensor=1),
    )
