"""Sampling on the device: rows of different texts, at different places, side by side.

A row is a place in the batch. `insert` puts the beginning of a text into some rows, `decode_step` draws one token in each row
and reads it, together with the tokens that the grammar forces after it. Which text goes where is the scheduler's.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from crystal_jax.config import ModelConfig
from crystal_jax.model.kv_cache import Cache, empty_cache, put_rows
from crystal_jax.model.kv_cache import resize as resize_cache
from crystal_jax.model.transformer import Transformer
from crystal_jax.sample.constraints.masks import (
    AllowedValueMask,
    CompositionLimits,
    DeviceAutomaton,
    ParseState,
    advance,
    allowed_mask,
    init_parse_state,
)
from crystal_jax.sharding import Layout
from crystal_jax.text.crystal_text import ELEMENTS

# Tokens a step that a row of a crystal wants, drawn and forced: 1.85 on average with LLaMA-2's tokens. With this many,
# few rows wait for their neighbours.
TOKENS_PER_STEP = (9, 4)


def draw(
    keys: Key[Array, " b"], logits: Float[Array, "b k"], temperature: Float[Array, " b"], top_p: Float[Array, " b"]
) -> Int[Array, " b"]:
    """One column for each row; a logit of -inf is never drawn.

    Logits are divided by the temperature, and 0 takes the most likely. Drawn is from the smallest set of columns that
    holds the share `top_p` of the probability (Holtzman et al., arXiv:1904.09751). One uniform number a row looks up
    the cumulative distribution: Gumbel noise would take one a column.
    """
    greedy = temperature == 0
    probabilities = jax.nn.softmax(logits / jnp.where(greedy, 1, temperature)[:, None], axis=-1)
    outside = jax.lax.cond(
        (top_p < 1).any(), _outside_nucleus, lambda p, _: jnp.zeros(p.shape, bool), probabilities, top_p[:, None]
    )
    probabilities = jnp.where(outside, 0.0, probabilities)
    cumulative = jnp.cumsum(probabilities, axis=-1)
    threshold = jax.vmap(jax.random.uniform)(keys)[:, None] * cumulative[:, -1:]
    # Sums are rounded, so they alone could point at a forbidden column, or past the last.
    reached = (cumulative > threshold) & (probabilities > 0)
    likeliest = logits.argmax(axis=-1)
    return jnp.where(reached.any(axis=-1) & ~greedy, reached.argmax(axis=-1), likeliest)


def _outside_nucleus(probabilities: Float[Array, "b k"], top_p: Float[Array, "b 1"]) -> Bool[Array, "b k"]:
    """Columns before which, from the most likely one on, the share is reached already."""
    ordered = jnp.sort(probabilities, axis=-1, descending=True)
    before = jnp.cumsum(ordered, axis=-1) - ordered
    smallest = jnp.where(before < top_p, ordered, jnp.inf).min(axis=-1, keepdims=True)
    return probabilities < smallest


def violates_limits(
    keys: Key[Array, " b"],
    logits: Float[Array, "b k"],
    limited: Float[Array, "b k"],
    temperature: Float[Array, " b"],
) -> Bool[Array, " b"]:
    """Whether a draw from `logits`, all of whose probability may be drawn, would have been none that `limited` has.

    Where it would have been, `draw` from what is limited is that draw. So texts that never stray have the probabilities
    that the model gives them among all that keep to the limits; those that are made to do not (Park et al.,
    arXiv:2405.21047).
    """
    heat = jnp.where(temperature == 0, 1, temperature)[:, None]
    kept = jax.nn.logsumexp(limited / heat, axis=-1) - jax.nn.logsumexp(logits / heat, axis=-1)
    others = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1)))(keys)
    return others > jnp.exp(kept)


class SamplingParams(NamedTuple):
    """What is asked of a text, an array element a row.

    Attributes:
        key: Of its random numbers; with the number of a token it decides the draw.
        temperature, top_p: See `draw`.
        limits: Of its composition.
        reject_on_violation: The text is given up as soon as it would not keep to its limits by itself; otherwise it is made to.
    """

    key: Key[Array, " b"]
    temperature: Float[Array, " b"]
    top_p: Float[Array, " b"]
    limits: CompositionLimits
    reject_on_violation: Bool[Array, " b"]


class DecodeState(NamedTuple):
    """The texts being written.

    Attributes:
        cache: Of their prompts and of what is written.
        logits: Of the next token, over the grammar's columns.
        state: Where each is in the grammar; a free row is at the end.
        written: Tokens written, EOS included.
        columns: Those tokens, as columns of the grammar.
        progress: What of them decides what may follow.
        log_probs: Natural logarithm of the model's probability of each token, at temperature 1, among those that the
            grammar admits; 0 of a forced one.
        log_allowed_mass: Natural logarithm of the share of probability that limits and order left, multiplied over the tokens.
        rejected: Strict ones that are given up.
        sampling: What is asked of each.
    """

    cache: Cache
    logits: Float[Array, "b k"]
    state: Int[Array, " b"]
    written: Int[Array, " b"]
    columns: Int[Array, "b n"]
    progress: ParseState
    log_probs: Float[Array, "b n"]
    log_allowed_mass: Float[Array, " b"]
    rejected: Bool[Array, " b"]
    sampling: SamplingParams


class PrefillResult(NamedTuple):
    """Prompts read once, for any number of rows: a cache of n rows, and the logits of what follows."""

    cache: Cache
    logits: Float[Array, "n k"]


def init_decode_state(
    cfg: ModelConfig,
    tables: DeviceAutomaton,
    *,
    rows: int,
    prompt_tokens: int,
    max_tokens: int,
    capacity: int | None = None,
    layout: Layout = "head_major",
    coded: bool = False,
) -> DecodeState:
    """Rows that write nothing yet.

    Args:
        cfg: The model's.
        tables: The grammar's.
        rows: How many.
        prompt_tokens: Length of the longest prompt.
        max_tokens: Length of the longest text, EOS included.
        capacity: Of the cache, if it is not to hold the longest text yet.
        layout: Of the cache.
        coded: Keep keys and values in 8 bits.
    """
    # A step writes as many tokens as it may force, wanted or not.
    room = max_tokens + tables.forced.shape[1]
    columns, elements = tables.token_ids.shape[0], len(ELEMENTS)
    ints, floats = jnp.zeros(rows, jnp.int32), jnp.zeros(rows)
    none = jnp.zeros((rows, elements), bool)
    limits = CompositionLimits(none, none, jnp.zeros((rows, elements), jnp.int32), ints, ints, ints, ints)
    return DecodeState(
        cache=empty_cache(cfg, batch=rows, capacity=capacity or prompt_tokens + room, layout=layout, coded=coded),
        logits=jnp.zeros((rows, columns)),
        state=jnp.full(rows, tables.end),
        written=ints,
        columns=jnp.zeros((rows, room), jnp.int32),
        progress=init_parse_state(rows),
        log_probs=jnp.zeros((rows, room)),
        log_allowed_mass=floats,
        rejected=jnp.zeros(rows, bool),
        sampling=SamplingParams(
            jax.random.split(jax.random.key(0), rows), floats, floats, limits, jnp.zeros(rows, bool)
        ),
    )


def prefill(
    model: Transformer,
    tables: DeviceAutomaton,
    tokens: Int[Array, "n t"],
    count: Int[Array, " n"],
    *,
    layout: Layout = "head_major",
) -> PrefillResult:
    """Reads prompts of `count` tokens each; what follows them in `tokens` is padding."""
    hidden, cache = model.prefill(tokens, count, layout=layout)
    last = jnp.take_along_axis(hidden, count[:, None, None] - 1, axis=1)
    return PrefillResult(cache, model.unembed(last, tables.token_ids)[:, 0])


def insert(
    tables: DeviceAutomaton,
    rows: DecodeState,
    prompts: PrefillResult,
    sampling: SamplingParams,
    source: Int[Array, " b"],
) -> DecodeState:
    """Begins a text in each row whose `source` is not -1: after prompt `source`, as that row of `sampling` says."""
    fresh, taken = source >= 0, jnp.maximum(source, 0)

    def choose(old: Array, new: Array) -> Array:
        return jnp.where(fresh.reshape(-1, *(1,) * (old.ndim - 1)), new, old)

    return DecodeState(
        cache=put_rows(rows.cache, prompts.cache, source),
        logits=choose(rows.logits, prompts.logits[taken]),
        state=choose(rows.state, jnp.broadcast_to(tables.start, rows.state.shape)),
        written=choose(rows.written, jnp.zeros_like(rows.written)),
        columns=rows.columns,
        progress=jax.tree.map(lambda old: choose(old, jnp.zeros_like(old)), rows.progress),
        log_probs=rows.log_probs,
        log_allowed_mass=choose(rows.log_allowed_mass, jnp.zeros_like(rows.log_allowed_mass)),
        rejected=rows.rejected & ~fresh,
        sampling=jax.tree.map(choose, rows.sampling, sampling),
    )


def decode_step(
    model: Transformer,
    tables: DeviceAutomaton,
    rows: DecodeState,
    grants: AllowedValueMask,
    *,
    layers: list[nnx.State] | None = None,
    budget: int | None = None,
) -> DecodeState:
    """Draws a token in each row, appends what the grammar forces after it, and reads all of them at once.

    The draw depends on the row's key and on how many tokens it has, so a text does not depend on its neighbours, nor on
    whether forced tokens are drawn one by one. A row stays as it is that is at the end, waits for its guide, strays, or
    has nothing left that it may write; so does one, for one step, whose tokens would go beyond the `budget` for all.
    `layers` and `budget` are those of `Transformer.decode_forward`.
    """
    within = jnp.where(tables.allowed[rows.state], rows.logits, -jnp.inf)
    log_probs = jax.nn.log_softmax(within, axis=-1)
    sampling = rows.sampling
    open_columns = allowed_mask(
        tables, sampling.limits, grants, rows.progress, rows.state, sampling.reject_on_violation
    )
    limited = jnp.where(open_columns, within, -jnp.inf)
    running = is_active(tables, rows, grants) & (limited > -jnp.inf).any(axis=-1)
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
    # Nothing reads EOS.
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
        rejected=rows.rejected | rejected,
        sampling=sampling,
    )

    def moved(now: Array, old: Array) -> Array:
        return jnp.where(running.reshape(-1, *(1,) * (old.ndim - 1)), now, old)

    # What a row has written beyond its length is overwritten later.
    return new._replace(
        logits=moved(new.logits, rows.logits),
        state=moved(new.state, rows.state),
        progress=jax.tree.map(moved, new.progress, rows.progress),
        log_allowed_mass=moved(new.log_allowed_mass, rows.log_allowed_mass),
    )


def _put(rows: Array, new: Array, at: Int[Array, " b"]) -> Array:
    """Writes some elements into each row, from a place of its own on: choosing is faster than a scatter."""
    place = jnp.arange(rows.shape[1]) - at[:, None]
    for i, element in enumerate(new.T):
        rows = jnp.where(place == i, element[:, None], rows)
    return rows


def resize(tables: DeviceAutomaton, rows: DecodeState, kept: Int[Array, " c"], *, capacity: int) -> DecodeState:
    """The rows `kept`, with room for `capacity` tokens in each; -1 is a free row."""
    free, taken = kept < 0, jnp.maximum(kept, 0)
    cache = resize_cache(rows.cache, taken, capacity=capacity)
    others = jax.tree.map(lambda leaf: leaf[taken], rows._replace(cache=rows.cache.replace(keys=(), values=())))
    return others._replace(cache=cache, state=jnp.where(free, tables.end, others.state))


def is_full(tables: DeviceAutomaton, rows: DecodeState) -> Bool[Array, " b"]:
    """Rows that are not at the end and whose cache has no room for another step."""
    longest = 1 + tables.forced.shape[1]
    return (rows.state != tables.end) & (rows.cache.length + longest > rows.cache.capacity)


def max_batched_tokens(rows: int, tables: DeviceAutomaton) -> int:
    """How many tokens a step reads for so many rows: a little more than they want on average."""
    longest = 1 + tables.forced.shape[1]
    return min(rows * longest, max(longest, rows * TOKENS_PER_STEP[0] // TOKENS_PER_STEP[1]))


def is_active(tables: DeviceAutomaton, rows: DecodeState, grants: AllowedValueMask) -> Bool[Array, " b"]:
    """Rows that were not rejected, and are neither at the end nor at a field for which they wait."""
    return (rows.state != tables.end) & ~rows.rejected & (tables.turn[rows.state] < grants.until)
