"""Rank and targets of adapters on a held-out chemistry, against full fine-tuning and training from scratch: 34 runs.

Train configs/hydrides.py:base first. Each setting has two seeds. All adapters have one learning rate; they are
rank-stabilised, so that their updates have the same size at every rank.

Command:  crystal-jax sweep --sweep=configs/sweeps/hydrides.py --output=runs/hydrides/sweep
              --markdown_file=docs/RESULTS.md
"""

from crystal_jax.sweep.expand import grid

CONFIG = "configs/hydrides.py"
TITLE = "Adapters on hydrides, which the base has never seen"


def get_sweep() -> list[dict]:
    """Five ranks on three sets of targets, and the two that have no adapters."""
    targets = [("q",), ("q", "v"), ("q", "k", "v", "o")]
    adapters = grid({"variant": ["lora"], "lora.rank": [1, 2, 4, 8, 64], "lora.targets": targets})
    return [
        {**run, "train.seed": seed, "data.seed": seed}
        for run in (*adapters, {"variant": "full"}, {"variant": "scratch"})
        for seed in (0, 1)
    ]
