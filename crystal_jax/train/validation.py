"""Computes the loss on held-out crystals, in total and by class of token."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from crystal_jax.data.pipeline import Batch
from crystal_jax.sharding import put_batch
from crystal_jax.text.fields import CLASSES, OTHER
from crystal_jax.train.step import TrainSetup, TrainState

_ARRAYS = ("tokens", "targets", "weights", "positions", "segments", "classes")


def validate(setup: TrainSetup, state: TrainState, batches: Sequence[Batch], *, mesh: Mesh) -> dict[str, float]:
    """Computes the mean cross-entropy in nats over the counted targets of some batches.

    Returns:
        `val_loss` over all targets; `val_loss_lattice`, `_element`, `_coordinate`, `_end` and `_composition` over the
            targets that write lengths and angles, element symbols, coordinates, the end of the text, and a composition
            line. Classes without targets are left out.
    """
    arrays = ({name: batch[name] for name in _ARRAYS} for batch in batches)
    found = [setup.eval_step(state.params, setup.frozen, put_batch(batch, mesh)) for batch in arrays]
    sums, counts = np.asarray(jax.device_get(found), np.float64).sum(axis=0)
    losses = {"val_loss": float(sums.sum() / counts.sum())}
    for i, name in enumerate(CLASSES):
        if i != OTHER and counts[i]:
            losses[f"val_loss_{name}"] = float(sums[i] / counts[i])
    return losses
