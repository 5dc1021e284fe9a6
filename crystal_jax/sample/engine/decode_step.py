"""Decodes sequences on the device: a batch of slots, each with a sequence of its own length.

A slot is a row of the batch. `insert` puts prefilled prompts into slots. `decode_step` draws one token in each slot and
runs the model on it and on the tokens that the grammar forces after it. The scheduler decides which sequence goes into
which slot.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P
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
from crystal_jax.sharding import BATCH, Layout, cache_rules
from crystal_jax.text.crystal_text import ELEMENTS

# Tokens per slot and step that the budget allows, as a fraction. A crystal needs 1.85 on average with LLaMA-2's tokens,
# drawn and forced; at 9/4 few slots wait for others.
TOKENS_PER_STEP = (9, 4)


def draw(
    keys: Key[Array, " b"], logits: Float[Array, "b k"], temperature: Float[Array, " b"], top_p: Float[Array, " b"]
) -> Int[Array, " b"]:
    """Returns the column drawn in each row; a column whose logit is -inf is never drawn.

    Logits are divided by the temperature; temperature 0 takes the most likely column. Columns are drawn from the
    smallest set that holds the share `top_p` of the probability (nucleus sampling, Holtzman et al., arXiv:1904.09751).
    One uniform number per row is looked up in the cumulative distribution; Gumbel noise would take one per column.
    """
    greedy = temperature == 0
    probabilities = jax.nn.softmax(logits / jnp.where(greedy, 1, temperature)[:, None], axis=-1)
    outside = jax.lax.cond(
        (top_p < 1).any(), _outside_nucleus, lambda p, _: jnp.zeros(p.shape, bool), probabilities, top_p[:, None]
    )
    probabilities = jnp.where(outside, 0.0, probabilities)
    cumulative = jnp.cumsum(probabilities, axis=-1)
    threshold = jax.vmap(jax.random.uniform)(keys)[:, None] * cumulative[:, -1:]
    # Cumulative sums are rounded: alone, they could select a forbidden column, or one past the last.
    reached = (cumulative > threshold) & (probabilities > 0)
    likeliest = logits.argmax(axis=-1)
    return jnp.where(reached.any(axis=-1) & ~greedy, reached.argmax(axis=-1), likeliest)


def _outside_nucleus(probabilities: Float[Array, "b k"], top_p: Float[Array, "b 1"]) -> Bool[Array, "b k"]:
    """Returns True for columns outside the nucleus: the more likely columns already hold the share `top_p`."""
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
    """Returns True where rejection sampling rejects: the model's own draw violates the constraints.

    `logits` are masked by the grammar, `limited` by the grammar and the constraints. Where the result is False, `draw`
    from `limited` gives the model's own draw. Sequences that are never rejected therefore follow the model's
    distribution conditioned on the constraints; sequences on which masks enforce the constraints do not (Park et al.,
    arXiv:2405.21047).
    """
    heat = jnp.where(temperature == 0, 1, temperature)[:, None]
    kept = jax.nn.logsumexp(limited / heat, axis=-1) - jax.nn.logsumexp(logits / heat, axis=-1)
    others = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1)))(keys)
    return others > jnp.exp(kept)


def decode_rules(layout: Layout) -> tuple[tuple[str, P], ...]:
    """Returns the sharding rules of a `DecodeState`, its cache included."""
    return (
        *cache_rules(layout),
        (r"(logits|state|written|columns|log_probs|log_allowed_mass|rejected)$", BATCH),
        (r"progress/(counts|least|site)$", BATCH),
        (r"sampling/(key|temperature|top_p|reject_on_violation)$", BATCH),
        (r"limits/(elements|required|formula|m(in|ax)_elements|m(in|ax)_atoms)$", BATCH),
    )


class SamplingParams(NamedTuple):
    """The sampling parameters of each slot, as arrays over b slots.

    Attributes:
        key: Random key of the slot's sequence; a draw depends on it and on the number of tokens written before.
        temperature: Divides the logits; see `draw`.
        top_p: Share of the probability to draw from; see `draw`.
        limits: Limits on the composition.
        reject_on_violation: A sequence is rejected as soon as the model alone would violate its constraints; otherwise
            masks enforce them.
    """

    key: Key[Array, " b"]
    temperature: Float[Array, " b"]
    top_p: Float[Array, " b"]
    limits: CompositionLimits
    reject_on_violation: Bool[Array, " b"]


class DecodeState(NamedTuple):
    """The state of b decode slots.

    Attributes:
        cache: KV cache of the prompts and of the tokens written.
        logits: Logits of the next token, over the grammar's columns.
        state: Automaton state of each slot; a free slot is in the end state.
        written: Number of tokens written, EOS included.
        columns: The tokens written, as columns of the grammar.
        progress: Parse state of each slot: the part of its sequence that decides which tokens may follow.
        log_probs: Natural logarithm of the model's probability of each token, at temperature 1, normalised over the
            tokens that the grammar admits; 0 for a forced token.
        log_allowed_mass: Natural logarithm of the share of probability that the constraints leave, summed over the
            tokens written.
        rejected: Slots whose sequence violates its constraints; the host restarts them.
        sampling: Sampling parameters of each slot.
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
    """The prefill of n prompts, to be inserted into any number of slots.

    Attributes:
        cache: KV cache of the prompts, one row per prompt.
        logits: Logits of the token after each prompt, over the grammar's columns.
    """

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
    """Returns a decode state whose slots are all free.

    Args:
        cfg: Configuration of the model.
        tables: Tables of the grammar.
        rows: Number of slots.
        prompt_tokens: Length of the longest prompt.
        max_tokens: Length of the longest completion, EOS included.
        capacity: Positions in the cache; by default enough for the longest prompt and completion.
        layout: Layout of the cache.
        coded: Keep keys and values in 8 bits.
    """
    # A step always writes the maximum number of forced tokens, so the arrays need room for that many more.
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
    """Prefills n prompts; row i of `tokens` holds `count[i]` tokens, and padding after them."""
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
    """Starts a new sequence in each slot whose `source` is not -1.

    Args:
        tables: Tables of the grammar.
        rows: The decode state.
        prompts: Prefilled prompts.
        sampling: Sampling parameters of each slot; used where a sequence starts.
        source: Index of each slot's prompt in `prompts`, or -1.
    """
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
    """Draws one token in each slot and runs the model on it and on the tokens that the grammar forces after it.

    A draw depends on the slot's key and on the number of tokens that its sequence has. So a sequence does not depend on
    the other slots, nor on whether forced tokens are drawn one by one.

    A slot is not advanced if it is finished, is waiting for its guide, was rejected, or has no allowed token. A slot
    that would exceed `budget` (an upper bound on the tokens of the step, over all slots) waits until the next step.
    `layers` and `budget` are passed on to `Transformer.decode_forward`.
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
        rejected=rows.rejected | rejected,
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


def resize(tables: DeviceAutomaton, rows: DecodeState, kept: Int[Array, " c"], *, capacity: int) -> DecodeState:
    """Returns the slots `kept`, with a cache of `capacity` positions each; -1 stands for a free slot."""
    free, taken = kept < 0, jnp.maximum(kept, 0)
    cache = resize_cache(rows.cache, taken, capacity=capacity)
    others = jax.tree.map(lambda leaf: leaf[taken], rows._replace(cache=rows.cache.replace(keys=(), values=())))
    return others._replace(cache=cache, state=jnp.where(free, tables.end, others.state))


def is_full(tables: DeviceAutomaton, rows: DecodeState) -> Bool[Array, " b"]:
    """Returns True for slots that are not finished and whose cache has no room for another step."""
    longest = 1 + tables.forced.shape[1]
    return (rows.state != tables.end) & (rows.cache.length + longest > rows.cache.capacity)


def max_batched_tokens(rows: int, tables: DeviceAutomaton) -> int:
    """Returns the token budget of a decode step for this many slots: a little more than they need on average."""
    longest = 1 + tables.forced.shape[1]
    return min(rows * longest, max(longest, rows * TOKENS_PER_STEP[0] // TOKENS_PER_STEP[1]))


def is_active(tables: DeviceAutomaton, rows: DecodeState, grants: AllowedValueMask) -> Bool[Array, " b"]:
    """Returns True for slots that are neither finished, nor rejected, nor waiting for their guide."""
    return (rows.state != tables.end) & ~rows.rejected & (tables.turn[rows.state] < grants.until)
