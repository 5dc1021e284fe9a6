"""What pre-training brings: validation loss of two runs on the same data, against the tokens that they have seen.

    ./launch/smollm2.sh
    crystal-jax train --config=configs/smollm2.py:lora --workdir=runs/smollm2/lora
    crystal-jax train --config=configs/smollm2.py:scratch --workdir=runs/smollm2/scratch
    python benchmarks/pretraining_curve.py --output=docs/smollm2.png runs/smollm2/lora runs/smollm2/scratch

Prints a table and draws the curves. Tokens seen are counted in `metrics.jsonl`: real ones, those of prompts included.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

CLASSES = ("lattice", "element", "coordinate", "end")
NAMES = {"lora": "pre-trained, with adapters", "scratch": "the same architecture, from nothing"}


def tokens_a_step(rows: list[dict[str, float]]) -> float:
    """Mean of the logged steps; the first one's time is that of compilation."""
    logged = [row for row in rows if "tokens_per_second" in row]
    seen = sum(
        now["tokens_per_second"] * (now["productive_seconds"] - before["productive_seconds"])
        for before, now in itertools.pairwise(logged)
    )
    return seen / (logged[-1]["step"] - logged[0]["step"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdirs", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, required=True, help="a PNG")
    arguments = parser.parse_args()
    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    for workdir in arguments.workdirs:
        rows = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
        each, name = tokens_a_step(rows), NAMES.get(workdir.name, workdir.name)
        measured = [row for row in rows if "val_loss" in row]
        seen = [row["step"] * each / 1000 for row in measured]
        (line,) = axes.plot(seen, [row["val_loss"] for row in measured], "o-", label=f"{name}: validation")
        trained = [row for row in rows if "loss" in row]
        steps, losses = [row["step"] * each / 1000 for row in trained], [row["loss"] for row in trained]
        axes.plot(steps, losses, color=line.get_color(), alpha=0.35, linewidth=1, label=f"{name}: training")
        print(f"{name}, {each:,.0f} tokens a step")
        print("| thousand tokens | loss | " + " | ".join(CLASSES) + " |\n|" + "---|" * (2 + len(CLASSES)))
        for thousand, row in zip(seen, measured, strict=True):
            values = [row["val_loss"], *(row[f"val_loss_{part}"] for part in CLASSES)]
            print(f"| {thousand:.0f} | " + " | ".join(f"{value:.3f}" for value in values) + " |")
    axes.set(xlabel="thousand tokens seen", ylabel="nats a token of the crystal", yscale="log", ylim=(0.6, 4))
    axes.set_yticks([0.6, 0.8, 1, 1.5, 2, 3, 4], ["0.6", "0.8", "1", "1.5", "2", "3", "4"])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(arguments.output, dpi=120)


if __name__ == "__main__":
    main()
