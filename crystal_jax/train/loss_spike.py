"""Steps that are not to be believed: their updates are skipped, on the device, without the host being asked.

A loss or gradient norm far above its running median is a bad batch, a broken chip, or a learning rate that is too
high. One such step can undo days; leaving it out costs nothing. Many in a row, or a loss that is no number, are for a
human to look at: the loop stops.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from crystal_jax.config import GuardConfig

T = TypeVar("T")


class GuardState(NamedTuple):
    """What the guard remembers; a part of the train state, so that a resumed run judges as an uninterrupted one.

    Attributes:
        losses, norms: Of the last accepted steps, in a ring; NaN where there was none yet. Shape [window].
        accepted: Steps accepted so far.
        skipped: Steps skipped so far.
        in_a_row: Steps skipped since the last accepted one.
    """

    losses: Float[Array, " window"]
    norms: Float[Array, " window"]
    accepted: Int[Array, ""]
    skipped: Int[Array, ""]
    in_a_row: Int[Array, ""]


def new_guard(cfg: GuardConfig) -> GuardState:
    """Before the first step."""
    empty, zero = jnp.full(cfg.window, jnp.nan, jnp.float32), jnp.zeros((), jnp.int32)
    return GuardState(empty, empty, zero, zero, zero)


def skip_if_spike(
    cfg: GuardConfig, guard: GuardState, loss: Float[Array, ""], norm: Float[Array, ""]
) -> tuple[Bool[Array, ""], GuardState]:
    """Whether a step's update may be taken, and the guard after it.

    Both numbers must be finite, and not too many times their median over the last accepted steps. The first `window`
    steps have no yardstick and are only asked to be finite.
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
    """One of two trees of arrays."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
