"""AdamW with clipping, linear warm-up and cosine decay, all from Optax."""

from __future__ import annotations

from typing import Any

import jax
import optax

from crystal_jax.config import OptimizerConfig


def learning_rate(cfg: OptimizerConfig, *, num_steps: int) -> optax.Schedule:
    """Linear from 0 to `peak_lr` in the warm-up, then half a cosine to `end_lr` at the last step."""
    warmup = min(cfg.warmup_steps, max(num_steps - 1, 0))
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=cfg.peak_lr,
        warmup_steps=warmup,
        decay_steps=num_steps,
        end_value=cfg.end_lr,
    )


def make_optimizer(cfg: OptimizerConfig, *, num_steps: int) -> optax.GradientTransformation:
    """The update rule; norms and embeddings are not decayed."""
    return optax.chain(
        optax.clip_by_global_norm(cfg.clip_norm),
        optax.adamw(
            learning_rate(cfg, num_steps=num_steps),
            b1=cfg.b1,
            b2=cfg.b2,
            weight_decay=cfg.weight_decay,
            mask=_decayed,
        ),
    )


def _decayed(params: Any) -> Any:
    def is_decayed(path: tuple[Any, ...], _: jax.Array) -> bool:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return "norm" not in name and "embedding" not in name

    return jax.tree_util.tree_map_with_path(is_decayed, params)
