"""Skips the updates of loss spikes, on the device, without synchronising with the host.

A loss or gradient norm far above its running median indicates a bad batch, a faulty chip, or a learning rate that is
too high. One such update can undo days of training, and skipping it costs nothing. If many steps in a row are skipped,
or the loss is not finite, the training loop stops the run.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from crystal_jax.config import GuardConfig

T = TypeVar("T")


class GuardState(NamedTuple):
    """Statistics for detecting loss spikes. They are part of the train state, so that a resumed run makes the same
    decisions as an uninterrupted one.

    Attributes:
        losses, norms: values of the last accepted steps, in a ring buffer; NaN in unused slots. Shape [window].
        accepted: number of accepted steps.
        skipped: number of skipped steps.
        in_a_row: number of steps skipped since the last accepted one.
    """

    losses: Float[Array, " window"]
    norms: Float[Array, " window"]
    accepted: Int[Array, ""]
    skipped: Int[Array, ""]
    in_a_row: Int[Array, ""]


def new_guard(cfg: GuardConfig) -> GuardState:
    """Returns the state before the first step."""
    empty, zero = jnp.full(cfg.window, jnp.nan, jnp.float32), jnp.zeros((), jnp.int32)
    return GuardState(empty, empty, zero, zero, zero)


def skip_if_spike(
    cfg: GuardConfig, guard: GuardState, loss: Float[Array, ""], norm: Float[Array, ""]
) -> tuple[Bool[Array, ""], GuardState]:
    """Returns whether a step's update is accepted, and the new guard state.

    Both numbers must be finite and at most a factor times their median over the last accepted steps. The first `window`
    steps have no median to compare with and only need to be finite.
    """
    believed = jnp.isfinite(loss) & jnp.isfinite(norm)
    for value, history, factor in ((loss, guard.losses, cfg.loss_factor), (norm, guard.norms, cfg.norm_factor)):
        if factor:
            believed &= (guard.accepted < cfg.window) | (value <= factor * jnp.median(history))
    place = guard.accepted % cfg.window
    accepted = GuardState(
        guard.losses.at[place].set(loss),
        guard.norms.at[place].set(norm),
        guard.accepted + 1,
        guard.skipped,
        jnp.zeros_like(guard.in_a_row),
    )
    skipped = guard._replace(skipped=guard.skipped + 1, in_a_row=guard.in_a_row + 1)
    return believed, choose(believed, accepted, skipped)


def choose(condition: Bool[Array, ""], yes: T, no: T) -> T:
    """Selects one of two trees of arrays."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
