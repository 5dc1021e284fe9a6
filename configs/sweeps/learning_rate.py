"""Learning rate and weight decay of the small model, at an eleventh of its steps: 6 runs.

Command:  crystal-jax sweep --sweep=configs/sweeps/learning_rate.py --output=runs/learning_rate
"""

from crystal_jax.sweep.expand import grid

CONFIG = "configs/mp20_open.py:scratch"


def get_sweep() -> list[dict]:
    """Three rates, two decays."""
    return grid(
        {
            "optimizer.peak_lr": [2e-3, 5e-3, 1e-2],
            "optimizer.weight_decay": [0.01, 0.1],
            "train.num_steps": [2_000],
        }
    )
