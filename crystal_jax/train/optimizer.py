"""Builds the optimizer from Optax: AdamW or Muon with clipping, linear warm-up and cosine decay."""

from __future__ import annotations

from typing import Any

import jax
import optax
import optax.contrib

from crystal_jax.config import OptimizerConfig, input_axes


def learning_rate(cfg: OptimizerConfig, *, num_steps: int) -> optax.Schedule:
    """Returns the schedule: linear from 0 to `peak_lr` in the warm-up, half a cosine to `end_lr` at the last step."""
    warmup = min(cfg.warmup_steps, max(num_steps - 1, 0))
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=cfg.peak_lr,
        warmup_steps=warmup,
        decay_steps=num_steps,
        end_value=cfg.end_lr,
    )


def make_optimizer(cfg: OptimizerConfig, *, num_steps: int) -> optax.GradientTransformation:
    """Returns the optimizer. Weight decay does not apply to norms, biases and embeddings."""
    schedule = learning_rate(cfg, num_steps=num_steps)
    if cfg.name == "muon":
        rule = optax.contrib.muon(
            schedule,
            adam_b1=cfg.b1,
            adam_b2=cfg.b2,
            weight_decay=cfg.weight_decay,
            muon_weight_dimension_numbers=_matrices,
            consistent_rms=ADAM_RMS,
        )
    else:
        rule = optax.adamw(schedule, b1=cfg.b1, b2=cfg.b2, weight_decay=cfg.weight_decay, mask=_decayed)
    return optax.chain(optax.clip_by_global_norm(cfg.clip_norm), rule)


# Typical RMS of Adam's updates, to which Muon's are scaled, so that both use the same learning rate (Liu et al.,
# arXiv:2502.16982).
ADAM_RMS = 0.2


def _matrices(params: Any) -> Any:
    """Returns which axes of a parameter are the rows and columns of the matrix that Muon orthogonalises.

    These are the kernels of the blocks only; embedding, head, norms and adapters are optimised by AdamW (None).
    """

    def axes(path: tuple[Any, ...], leaf: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if "kernel" not in name:
            return None
        outputs = 1 + input_axes(name.split("/")[1])  # axis 0 is the layer
        return optax.contrib.MuonDimensionNumbers(tuple(range(1, outputs)), tuple(range(outputs, leaf.ndim)))

    return jax.tree_util.tree_map_with_path(axes, params)


def _decayed(params: Any) -> Any:
    def is_decayed(path: tuple[Any, ...], _: jax.Array) -> bool:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return not any(part in name for part in ("norm", "embedding", "bias"))

    return jax.tree_util.tree_map_with_path(is_decayed, params)
