"""Reads prompts, and decodes: one draw in each slot, and the model's pass over the tokens that follow from it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Int

from crystal_jax.model.transformer import Transformer
from crystal_jax.sample.constraints.masks import AllowedValueMask, DeviceAutomaton, advance, allowed_mask
from crystal_jax.sample.engine.decode_state import DecodeState, PrefillResult, is_active
from crystal_jax.sample.engine.draw import draw, violates_limits
from crystal_jax.sharding import Layout

# Tokens per slot and step that the budget allows, as a fraction. A crystal needs 1.85 on average with LLaMA-2's tokens,
# drawn and forced; at 9/4 few slots wait for others.
TOKENS_PER_STEP = (9, 4)


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
    layers: list[nnx.State] | None = None,
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
    within = jnp.where(tables.allowed[rows.state], rows.logits, -jnp.inf)
    log_probs = jax.nn.log_softmax(within, axis=-1)
    sampling = rows.sampling
    open_columns = allowed_mask(
        tables, sampling.limits, grants, rows.progress, rows.state, sampling.reject_on_violation
    )
    limited = jnp.where(open_columns, within, -jnp.inf)
    active = is_active(tables, rows, grants)
    running = active & (limited > -jnp.inf).any(axis=-1)
    stuck = active & ~running
    keys = jax.vmap(jax.random.fold_in)(sampling.key, rows.written)
    rejected = running & sampling.reject_on_violation & violates_limits(keys, within, limited, sampling.temperature)
    running &= ~rejected
    column = draw(keys, limited, sampling.temperature, sampling.top_p)

    state = tables.next_state[rows.state, column]
    ended = state == tables.end
    columns = jnp.concatenate([column[:, None], tables.forced[state]], axis=1)
    added = jnp.where(running, 1 + tables.num_forced[state], 0)
    if budget is not None:
        running &= jnp.cumsum(added) <= budget
        added = jnp.where(running, added, 0)
    # The model never reads EOS: no token follows it.
    hidden, cache = model.decode_forward(
        tables.token_ids[columns], jnp.where(ended, 0, added), rows.cache, layers=layers, budget=budget
    )
    last = jnp.take_along_axis(hidden, jnp.maximum(added - 1, 0)[:, None, None], axis=1)

    chosen = jnp.take_along_axis(log_probs, column[:, None], axis=-1)[:, 0]
    kept = jax.nn.logsumexp(jnp.where(limited > -jnp.inf, log_probs, -jnp.inf), axis=-1)
    forced = jnp.zeros((len(chosen), tables.forced.shape[1]))

    new = DecodeState(
        cache=cache,
        logits=model.unembed(last, tables.token_ids)[:, 0],
        state=tables.after[state],
        written=rows.written + added,
        columns=_put(rows.columns, columns, rows.written),
        progress=advance(tables, rows.progress, rows.state, column),
        log_probs=_put(rows.log_probs, jnp.concatenate([chosen[:, None], forced], axis=1), rows.written),
        log_allowed_mass=rows.log_allowed_mass + jnp.minimum(kept, 0),
        rejected=rows.rejected | rejected | stuck,
        sampling=sampling,
    )

    def moved(now: Array, old: Array) -> Array:
        return jnp.where(running.reshape(-1, *(1,) * (old.ndim - 1)), now, old)

    # Columns, log_probs and cache entries beyond a slot's length need no restoring: later steps overwrite them.
    return new._replace(
        logits=moved(new.logits, rows.logits),
        state=moved(new.state, rows.state),
        progress=jax.tree.map(moved, new.progress, rows.progress),
        log_allowed_mass=moved(new.log_allowed_mass, rows.log_allowed_mass),
    )


def _put(rows: Array, new: Array, at: Int[Array, " b"]) -> Array:
    """Writes the elements of `new` into each row, from the row's offset `at` on; selection is faster than a scatter."""
    place = jnp.arange(rows.shape[1]) - at[:, None]
    for i, element in enumerate(new.T):
        rows = jnp.where(place == i, element[:, None], rows)
    return rows


def max_batched_tokens(rows: int, tables: DeviceAutomaton) -> int:
    """Returns the token budget of a decode step for this many slots: a little more than they need on average."""
    longest = 1 + tables.forced.shape[1]
    return min(rows * longest, max(longest, rows * TOKENS_PER_STEP[0] // TOKENS_PER_STEP[1]))
