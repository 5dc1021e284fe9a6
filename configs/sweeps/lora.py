"""Rank and targets of LLaMA-2 7B's adapters: 6 runs, as jobs on TPU slices.

The options name the cluster, the weights and the data.

Command:  crystal-jax sweep --sweep=configs/sweeps/lora.py --output=/bucket/runs/lora --engine=xpk
Options:  --engine_options="--cluster=crystal --project=P --zone=Z --image=I" --set=base=/bucket/models/llama2-7b
          --set=data.directory=/bucket/data/mp20/mp20 --set=tokenizer.path=/bucket/models/llama2-7b/tokenizer.model
"""

from crystal_jax.sweep.expand import grid

CONFIG = "configs/llama2_7b.py:tpu"


def get_sweep() -> list[dict]:
    """Three ranks; queries and values as in the paper, or all projections of the attention."""
    return grid({"lora.rank": [4, 8, 16], "lora.targets": [("q", "v"), ("q", "k", "v", "o")]})
