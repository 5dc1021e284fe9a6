"""Rejection on the device: a slot whose sequence is rejected begins its next attempt within the same call.

The prompt's keys and values are still in the cache, so that an attempt needs neither the host nor a prefill.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Shaped, UInt

from crystal_jax.model.attention.kv_cache import grow
from crystal_jax.sample.constraints.masks import AllowedValueMask, CompositionLimits, DeviceAutomaton, init_parse_state
from crystal_jax.sample.engine.decode_state import DecodeState, PrefillResult, SamplingParams, insert
from crystal_jax.sharding import BATCH

RULES = ((r"(mask|begin)/(open|until)$", BATCH), (r"retries/(key|first|number|strict|limit|length|logits)$", BATCH))

Tree = TypeVar("Tree")


class Retries(NamedTuple):
    """What each slot needs for its next attempt.

    Attributes:
        key: Random key of the sample; the number of an attempt is folded into it.
        first: Number of the first attempt.
        number: Attempts that failed before the present one.
        strict: Attempts in which a violation rejects the sequence; in later ones masks enforce the constraints.
        limit: Attempts that the slot may make; the host changes it.
        length: Positions of the prompt.
        logits: Logits after the prompt.
    """

    key: Key[Array, " b"]
    first: Int[Array, " b"]
    number: Int[Array, " b"]
    strict: Int[Array, " b"]
    limit: Int[Array, " b"]
    length: Int[Array, " b"]
    logits: Float[Array, "b k"]


class Slots(NamedTuple):
    """The slots of an engine.

    Attributes:
        rows: Their sequences.
        mask: The latest answers of their guides.
        begin: The answers of their guides before the first token.
        retries: See `Retries`.
    """

    rows: DecodeState
    mask: AllowedValueMask
    begin: AllowedValueMask
    retries: Retries


class Placement(NamedTuple):
    """Sequences for slots, as arrays over the b slots: NumPy arrays, which the host fills.

    Attributes:
        source: Index of each slot's prompt in the prefill, or -1 where no sequence starts.
        seed, sample: Seed of the run, and number of the sample.
        first, number, strict, limit: See `Retries`.
        temperature, top_p, limits: See `SamplingParams`.
        mask: The answers of the guides before the first token.
    """

    source: Any
    seed: Any
    sample: Any
    first: Any
    number: Any
    strict: Any
    limit: Any
    temperature: Any
    top_p: Any
    limits: CompositionLimits
    mask: AllowedValueMask


class Answers(NamedTuple):
    """What the host tells the slots before a call, as arrays over the b slots: NumPy arrays, which the host fills.

    Attributes:
        mask: New answers of guides.
        changed: Slots that have a new answer.
        limit: See `Retries`.
    """

    mask: AllowedValueMask
    changed: Any
    limit: Any


def init_slots(rows: DecodeState, *, num_values: int) -> Slots:
    """Returns free slots; `num_values` is the number of values of `TokenAutomaton.values`."""
    count = len(rows.state)
    ints = jnp.zeros(count, jnp.int32)
    mask = AllowedValueMask(jnp.ones((count, num_values), bool), ints)
    retries = Retries(rows.sampling.key, ints, ints, ints, ints, ints, jnp.zeros_like(rows.logits))
    return Slots(rows, mask, mask, retries)


def place(tables: DeviceAutomaton, slots: Slots, prompts: PrefillResult, placed: Placement) -> Slots:
    """Starts sequences in slots.

    Args:
        tables: Tables of the grammar.
        slots: The slots.
        prompts: Prefilled prompts.
        placed: Where each sequence starts, and its settings.
    """
    fresh, taken = placed.source >= 0, jnp.maximum(placed.source, 0)
    new = Retries(
        key=jax.vmap(_sample_key)(placed.seed, placed.sample),
        first=placed.first,
        number=placed.number,
        strict=placed.strict,
        limit=placed.limit,
        length=prompts.cache.length[taken],
        logits=prompts.logits[taken],
    )
    sampling = SamplingParams(
        key=_attempt_keys(new),
        temperature=placed.temperature,
        top_p=placed.top_p,
        limits=placed.limits,
        reject_on_violation=_rejects(new, placed.temperature),
    )
    return Slots(
        rows=insert(tables, slots.rows, prompts, sampling, placed.source),
        mask=_choose(fresh, placed.mask, slots.mask),
        begin=_choose(fresh, placed.mask, slots.begin),
        retries=_choose(fresh, new, slots.retries),
    )


def grow_slots(slots: Slots, *, capacity: int) -> Slots:
    """Returns the slots with a cache of more positions."""
    return slots._replace(rows=slots.rows._replace(cache=grow(slots.rows.cache, capacity=capacity)))


def answer(slots: Slots, answers: Answers) -> Slots:
    """Returns the slots with new answers of their guides."""
    return slots._replace(
        mask=_choose(answers.changed, answers.mask, slots.mask), retries=slots.retries._replace(limit=answers.limit)
    )


def restart(tables: DeviceAutomaton, slots: Slots) -> Slots:
    """Begins the next attempt in each slot that was rejected and has an attempt left."""
    rows, retries = slots.rows, slots.retries
    again = rows.rejected & (retries.number + 1 < retries.limit)
    retries = retries._replace(number=retries.number + again)
    sampling = rows.sampling._replace(
        key=_choose(again, _attempt_keys(retries), rows.sampling.key),
        reject_on_violation=jnp.where(
            again, _rejects(retries, rows.sampling.temperature), rows.sampling.reject_on_violation
        ),
    )
    restarted = rows._replace(
        cache=rows.cache.replace(length=jnp.where(again, retries.length, rows.cache.length)),
        logits=_choose(again, retries.logits, rows.logits),
        state=jnp.where(again, tables.start, rows.state),
        written=jnp.where(again, 0, rows.written),
        progress=_choose(again, init_parse_state(len(again)), rows.progress),
        log_allowed_mass=jnp.where(again, 0.0, rows.log_allowed_mass),
        rejected=rows.rejected & ~again,
        sampling=sampling,
    )
    return slots._replace(rows=restarted, mask=_choose(again, slots.begin, slots.mask), retries=retries)


def _sample_key(seed: UInt[Array, ""], sample: Int[Array, ""]) -> Key[Array, ""]:
    return jax.random.fold_in(jax.random.key(seed), sample)


def _attempt_keys(retries: Retries) -> Key[Array, " b"]:
    return jax.vmap(jax.random.fold_in)(retries.key, retries.first + retries.number)


def _rejects(retries: Retries, temperature: Float[Array, " b"]) -> Bool[Array, " b"]:
    """Returns whether a violation rejects the sequence. At temperature 0 every attempt would be the same."""
    return (retries.number < retries.strict) & (temperature > 0)


def _choose(rows: Bool[Array, " b"], new: Tree, old: Tree) -> Tree:
    """Returns the leaves of `new` in the chosen rows, and those of `old` in the others."""

    def choose(a: Shaped[Array, "b ..."], b: Shaped[Array, "b ..."]) -> Shaped[Array, "b ..."]:
        return jnp.where(rows.reshape(-1, *(1,) * (b.ndim - 1)), a, b)

    chosen: Tree = jax.tree.map(choose, new, old)
    return chosen
