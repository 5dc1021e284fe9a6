"""Demonstrates the whole workflow, small, on real crystals: prepare, train, sample, relax and evaluate, report.

Takes measured mineral structures (the American Mineralogist Crystal Structure Database, embedded through the package
larixite), fine-tunes the released model crystal-tiny, which was trained on computed crystals, on them with LoRA, and
samples crystals before and after. The samples after are relaxed with M3GNet, whose weights are fetched once through
pip, and ranked by their energies above the hull of known materials in the package. A second run reuses the prepared
data and everything else that is finished.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from crystal_jax.energy.config import NO_MODEL
from crystal_jax.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

BASE = "crystal-tiny"
_SHOWN = 5  # candidates that are printed


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags of `crystal-jax demo`."""
    flags.DEFINE_string("output", "demo", "Directory for everything the demo makes.", flag_values=flag_values)
    flags.DEFINE_integer(
        "num_samples",
        256,
        "How many crystals to write, before and after.",
        lower_bound=1,
        upper_bound=1000000,
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "num_steps",
        60,
        "How long to train.",
        lower_bound=1,
        upper_bound=1000000,
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "max_entries",
        1500,
        "Mineral structures to use, at most 4,493.",
        lower_bound=1,
        upper_bound=1000000,
        flag_values=flag_values,
    )
    flags.DEFINE_integer("seed", 0, "Of the samples.", lower_bound=0, upper_bound=2**32 - 1, flag_values=flag_values)


def main(flag_values: flags.FlagValues) -> None:
    """Runs `crystal-jax demo`."""
    demo(
        Path(flag_values.output),
        num_samples=flag_values.num_samples,
        num_steps=flag_values.num_steps,
        max_entries=flag_values.max_entries,
        seed=flag_values.seed,
    )


def demo(output: Path, *, num_samples: int, num_steps: int, max_entries: int, seed: int) -> Path:
    """Runs all stages below `output` and returns the path of the report."""
    # Late, so that --help and bad flags answer at once.
    from crystal_jax.data.prepare import prepare
    from crystal_jax.evaluate.run import evaluate
    from crystal_jax.report.html import write_report
    from crystal_jax.sample.run import sample
    from crystal_jax.train.run import train

    print("1/5 prepare: measured mineral structures (AMCSD)", flush=True)
    data = prepare("amcsd", data_dir=output / "data", max_entries=max_entries)
    print(f"2/5 train: {BASE} learns minerals through LoRA", flush=True)
    workdir = output / "train"
    train(demo_config(data, num_steps=num_steps), workdir=workdir)
    print("3/5 sample: new crystals, by the model as released and as trained", flush=True)
    before = sample(BASE, output=output / "before" / "samples", num_samples=num_samples, seed=seed)
    samples = sample(workdir, output=output / "samples", num_samples=num_samples, seed=seed)
    energy_model = _energy_model()
    print("4/5 evaluate" + (", relaxing the samples with M3GNet" if energy_model != NO_MODEL else ""), flush=True)
    evaluation, evaluation_before = output / "evaluation", output / "before" / "evaluation"
    real, known = f"{data}:test", f"{data}:train"
    first = evaluate(before, output=evaluation_before, reference=real, train_reference=known)
    result = evaluate(samples, output=evaluation, reference=real, train_reference=known, energy_model=energy_model)
    print("5/5 report", flush=True)
    beside = {"Before training": evaluation_before}
    report = write_report(evaluation, training_log=workdir / "metrics.jsonl", beside=beside)
    print(f"\n{_comparison(first.metrics, result.metrics)}")
    if energy_model != NO_MODEL:
        print(_best(result.candidates))
    for what, path in (
        ("report", report),
        ("metrics", evaluation / "metrics.json"),
        ("one row a sample", evaluation / "structures.csv"),
        ("candidates", evaluation / "candidates"),
        ("samples", samples),
        ("CIF files", samples.parent / "cif"),
        ("trained adapter", workdir),
    ):
        print(f"  {what:<18}{path}")
    return report


def _energy_model() -> str:
    """Returns the potential of the demo; none, after a line that says why, where its weights cannot be had."""
    from crystal_jax.energy.potentials.m3gnet_weights import m3gnet_folder

    try:
        m3gnet_folder()
    except UserError as error:
        print(f"without energies: {error}", flush=True)
        return NO_MODEL
    return "m3gnet"


def _best(candidates: pd.DataFrame) -> str:
    """Returns a table of the first candidates, for people."""
    # Late, so that --help is fast.
    import pandas as pd

    from crystal_jax.report.groups import symbol

    ranked = candidates[candidates["e_above_hull"].notna()]
    lines = [f"the first of {len(candidates)} candidates, as relaxed, with their energies above the hull:"]
    for row in ranked.head(_SHOWN).to_dict("records"):
        group = "" if pd.isna(row["spacegroup"]) else symbol(int(row["spacegroup"]))
        bound = "at least " if row["lower_bound"] is True else ""
        lines.append(f"  {row['reduced_formula']:<14}{group:<10}{bound}{row['e_above_hull']:.3f} eV/atom")
    return "\n".join(lines)


def _comparison(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Returns a sentence on the effect of training."""
    rate, distance = after["validity"], "wasserstein_density"
    return (
        f"{rate['hits']} of {rate['total']} samples are valid ({before['validity']['hits']} before training); their "
        f"densities are {after[distance]['value']:.2f} g/cm³ from those of minerals ({before[distance]['value']:.2f} "
        "before)."
    )


def demo_config(data: Path, *, num_steps: int) -> dict[str, Any]:
    """Returns the demo's training configuration, which is not in configs/ because an installed package must have it."""
    # Imported late, so that --help is fast.
    from crystal_jax.checkpoint.models import describe

    base = dataclasses.asdict(describe(BASE))
    return base | dict(
        base=BASE,
        lora=dict(rank=8, alpha=32.0, targets=("q", "k", "v", "o", "gate", "up", "down")),
        task=base["task"] | dict(infill=0.0, conditions=False, loss="completion"),
        data=dict(directory=str(data), seq_len=128, batch_size=16, packing_bins=32, seed=0),
        optimizer=dict(
            peak_lr=1e-2,
            end_lr=0.0,
            warmup_steps=10,
            b1=0.9,
            b2=0.98,
            weight_decay=0.0,
            clip_norm=1.0,
            accumulate=1,
        ),
        train=dict(
            num_steps=num_steps, log_every=5, eval_every=20, save_every=20, eval_batches=4, max_to_keep=2, seed=0
        ),
        mesh=dict(data=-1, fsdp=1, tensor=1),
    )
