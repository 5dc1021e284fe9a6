"""The state of decode slots: a batch of rows, each with a sequence of its own length.

`insert` puts prefilled prompts into slots. The scheduler decides which sequence goes into which slot.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from crystal_jax.config import ModelConfig
from crystal_jax.model.attention.kv_cache import Cache, empty_cache, put_rows
from crystal_jax.sample.constraints.masks import (
    AllowedValueMask,
    CompositionLimits,
    DeviceAutomaton,
    ParseState,
    init_parse_state,
)
from crystal_jax.sharding import BATCH, Layout, cache_rules
from crystal_jax.text.crystal_text import ELEMENTS


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
        rejected: Slots whose sequence violates its constraints, or has no allowed token.
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

    def choose(old: Shaped[Array, "b ..."], new: Shaped[Array, "b ..."]) -> Shaped[Array, "b ..."]:
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


def is_full(tables: DeviceAutomaton, rows: DecodeState) -> Bool[Array, " b"]:
    """Returns True for slots that are not finished and whose cache has no room for another step."""
    longest = 1 + tables.forced.shape[1]
    full: Bool[Array, " b"] = (rows.state != tables.end) & (rows.cache.length + longest > rows.cache.capacity)
    return full


def is_active(tables: DeviceAutomaton, rows: DecodeState, grants: AllowedValueMask) -> Bool[Array, " b"]:
    """Returns True for slots that are neither finished, nor rejected, nor waiting for their guide."""
    active: Bool[Array, " b"] = (rows.state != tables.end) & ~rows.rejected & (tables.turn[rows.state] < grants.until)
    return active
