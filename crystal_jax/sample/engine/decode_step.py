"""Reads prompts, and decodes: one draw in each slot, and the model's pass over the tokens that follow from it."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from crystal_jax.model.parameters import Params
from crystal_jax.model.transformer import Transformer
from crystal_jax.sample.constraints.masks import AllowedValueMask, DeviceAutomaton, advance, allowed_mask
from crystal_jax.sample.engine.decode_state import DecodeState, PrefillResult, is_active
from crystal_jax.sample.engine.draw import draw, violates_limits
from crystal_jax.sharding import Layout

# Tokens per slot and step that the budget allows, as a fraction. A crystal needs 1.85 on average with LLaMA-2's tokens,
# drawn and forced; at 9/4 few slots wait for others.
TOKENS_PER_STEP = (9, 4)


class _Draw(NamedTuple):
    """A draw in each slot.

    Attributes:
        column: The column drawn; it counts in running slots only.
        running: Slots that are active and not rejected.
        rejected: Active slots whose draw violates the constraints, or that have no allowed column.
        log_prob: Natural logarithm of the column's probability under the grammar.
        log_allowed_mass: Natural logarithm of the share of probability that the constraints leave.
    """

    column: Int[Array, " b"]
    running: Bool[Array, " b"]
    rejected: Bool[Array, " b"]
    log_prob: Float[Array, " b"]
    log_allowed_mass: Float[Array, " b"]


def prefill(
    model: Transformer,
    tables: DeviceAutomaton,
    tokens: Int[Array, "n t"],
    count: Int[Array, " n"],
    *,
    layout: Layout = "head_major",
) -> PrefillResult:
    """Prefills n prompts; row i of `tokens` holds `count[i]` tokens, and padding after them."""
    hidden, cache = model.prefill(tokens, count, layout=layout)
    last = jnp.take_along_axis(hidden, count[:, None, None] - 1, axis=1)
    return PrefillResult(cache, model.unembed(last, tables.token_ids)[:, 0])


def decode_step(
    model: Transformer,
    tables: DeviceAutomaton,
    rows: DecodeState,
    grants: AllowedValueMask,
    *,
    layers: list[Params] | None = None,
    budget: int | None = None,
) -> DecodeState:
    """Draws one token in each slot and runs the model on it and on the tokens that the grammar forces after it.

    A draw depends on the slot's key and on the number of tokens that its sequence has. So a sequence does not depend on
    the other slots, nor on whether forced tokens are drawn one by one.

    A slot is not advanced if it is finished, is waiting for its guide, or was rejected; without an allowed token, it is
    rejected. A slot that would exceed `budget` (an upper bound on the tokens of the step, over all slots) waits until
    the next step.
    `layers` and `budget` are passed on to `Transformer.decode_forward`.
    """
    drawn = _draw(tables, rows, grants)
    running, state = drawn.running, tables.next_state[rows.state, drawn.column]
    ended = state == tables.end
    columns = jnp.concatenate([drawn.column[:, None], tables.forced[state]], axis=1)
    added = jnp.where(running, 1 + tables.num_forced[state], 0)
    if budget is not None:
        running &= jnp.cumsum(added) <= budget
        added = jnp.where(running, added, 0)
    # The model never reads EOS: no token follows it.
    hidden, cache = model.decode_forward(
        tables.token_ids[columns], jnp.where(ended, 0, added), rows.cache, layers=layers, budget=budget
    )
    last = jnp.take_along_axis(hidden, jnp.maximum(added - 1, 0)[:, None, None], axis=1)
    forced = jnp.zeros((len(added), tables.forced.shape[1]))
    new = DecodeState(
        cache=cache,
        logits=model.unembed(last, tables.token_ids)[:, 0],
        state=tables.after[state],
        written=rows.written + added,
        columns=_put(rows.columns, columns, rows.written),
        progress=advance(tables, rows.progress, rows.state, drawn.column),
        log_probs=_put(rows.log_probs, jnp.concatenate([drawn.log_prob[:, None], forced], axis=1), rows.written),
        log_allowed_mass=rows.log_allowed_mass + jnp.minimum(drawn.log_allowed_mass, 0),
        rejected=rows.rejected | drawn.rejected,
        sampling=rows.sampling,
    )

    def moved(now: Shaped[Array, "b ..."], old: Shaped[Array, "b ..."]) -> Shaped[Array, "b ..."]:
        return jnp.where(running.reshape(-1, *(1,) * (old.ndim - 1)), now, old)

    # Columns, log_probs and cache entries beyond a slot's length need no restoring: later steps overwrite them.
    return new._replace(
        logits=moved(new.logits, rows.logits),
        state=moved(new.state, rows.state),
        progress=jax.tree.map(moved, new.progress, rows.progress),
        log_allowed_mass=moved(new.log_allowed_mass, rows.log_allowed_mass),
    )


def _draw(tables: DeviceAutomaton, rows: DecodeState, grants: AllowedValueMask) -> _Draw:
    """Draws a column in each slot from the probabilities that grammar, limits and guides leave."""
    within = jnp.where(tables.allowed[rows.state], rows.logits, -jnp.inf)
    log_probs = jax.nn.log_softmax(within, axis=-1)
    sampling = rows.sampling
    open_columns = allowed_mask(
        tables, sampling.limits, grants, rows.progress, rows.state, sampling.reject_on_violation
    )
    limited = jnp.where(open_columns, within, -jnp.inf)
    active = is_active(tables, rows, grants)
    has_choice = (limited > -jnp.inf).any(axis=-1)
    keys = jax.vmap(jax.random.fold_in)(sampling.key, rows.written)
    violated = violates_limits(keys, within, limited, sampling.temperature)
    rejected = active & (~has_choice | sampling.reject_on_violation & violated)
    column = draw(keys, limited, sampling.temperature, sampling.top_p)
    return _Draw(
        column=column,
        running=active & ~rejected,
        rejected=rejected,
        log_prob=jnp.take_along_axis(log_probs, column[:, None], axis=-1)[:, 0],
        log_allowed_mass=jax.nn.logsumexp(jnp.where(limited > -jnp.inf, log_probs, -jnp.inf), axis=-1),
    )


def _put(rows: Shaped[Array, "b n"], new: Shaped[Array, "b j"], at: Int[Array, " b"]) -> Shaped[Array, "b n"]:
    """Writes the elements of `new` into each row, from the row's offset `at` on; selection is faster than a scatter."""
    place = jnp.arange(rows.shape[1]) - at[:, None]
    for i, element in enumerate(new.T):
        rows = jnp.where(place == i, element[:, None], rows)
    return rows


def max_batched_tokens(rows: int, tables: DeviceAutomaton) -> int:
    """Returns the token budget of a decode step for this many slots: a little more than they need on average."""
    longest = 1 + tables.forced.shape[1]
    return min(rows * longest, max(longest, rows * TOKENS_PER_STEP[0] // TOKENS_PER_STEP[1]))
