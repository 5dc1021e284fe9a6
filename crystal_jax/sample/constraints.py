"""The grammar on the device: two tables, looked up for each row at each step."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from crystal_jax.text.grammar import TokenAutomaton


class DeviceAutomaton(NamedTuple):
    """A `TokenAutomaton` as arrays. A *column* is an index into `token_ids`, the few tokens the grammar uses.

    Attributes:
        token_ids: Shape [k].
        allowed: Which columns each state admits; shape [n_states, k].
        next_state: The state after a column, where it is admitted; shape [n_states, k].
    """

    token_ids: Int[Array, " k"]
    allowed: Bool[Array, "n_states k"]
    next_state: Int[Array, "n_states k"]


def to_device(automaton: TokenAutomaton) -> DeviceAutomaton:
    """The tables as they are looked up."""
    return DeviceAutomaton(
        jnp.asarray(automaton.token_ids),
        jnp.asarray(automaton.allowed),
        jnp.asarray(automaton.next_state),
    )


def mask_logits(
    automaton: DeviceAutomaton, state: Int[Array, " b"], logits: Float[Array, "b k"]
) -> Float[Array, "b k"]:
    """Gives every column that the grammar forbids in `state` probability zero."""
    return jnp.where(automaton.allowed[state], logits, -jnp.inf)


def advance(automaton: DeviceAutomaton, state: Int[Array, " b"], column: Int[Array, " b"]) -> Int[Array, " b"]:
    """The states after one more token in each row."""
    return automaton.next_state[state, column]
