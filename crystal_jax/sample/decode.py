"""Sampling on the device: one prompt, many rows, a KV cache, and the grammar at every step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from crystal_jax.model.llama import Cache, Llama, empty_cache
from crystal_jax.sample.constraints import advance, mask_logits, to_device
from crystal_jax.text.grammar import TokenAutomaton


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
    """How a token is drawn.

    Attributes:
        temperature: Logits are divided by it; 0 takes the most likely token.
        top_p: Draw from the smallest set of tokens that holds this share of probability (Holtzman et al., 2020).
    """

    temperature: float
    top_p: float

    def __post_init__(self):
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be 0 or more, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, not {self.top_p}")

    def draw(self, keys: Key[Array, " b"], logits: Float[Array, "b k"]) -> Int[Array, " b"]:
        """One column for each row; a logit of -inf is never drawn.

        One uniform number a row looks up the cumulative distribution: Gumbel noise would take one a column.
        """
        if self.temperature == 0:
            return logits.argmax(axis=-1)
        probabilities = jax.nn.softmax(logits / self.temperature, axis=-1)
        if self.top_p < 1:
            probabilities = jnp.where(_outside_nucleus(probabilities, self.top_p), 0.0, probabilities)
        cumulative = jnp.cumsum(probabilities, axis=-1)
        threshold = jax.vmap(jax.random.uniform)(keys)[:, None] * cumulative[:, -1:]
        # Sums are rounded, so they alone could point at a forbidden column, or past the last.
        reached = (cumulative > threshold) & (probabilities > 0)
        return jnp.where(reached.any(axis=-1), reached.argmax(axis=-1), probabilities.argmax(axis=-1))


def _outside_nucleus(probabilities: Float[Array, "b k"], top_p: float) -> Bool[Array, "b k"]:
    """Columns before which, from the most likely one on, the share is reached already."""
    ordered = jnp.sort(probabilities, axis=-1, descending=True)
    before = jnp.cumsum(ordered, axis=-1) - ordered
    smallest = jnp.where(before < top_p, ordered, jnp.inf).min(axis=-1, keepdims=True)
    return probabilities < smallest


class Samples(NamedTuple):
    """Finished rows.

    Attributes:
        tokens: Token ids, EOS where a row has ended; shape [b, max_tokens].
        log_prob: Natural logarithm of the model's probability of the row, at temperature 1, among the texts of
            the grammar; shape [b].
    """

    tokens: Int[Array, "b max_tokens"]
    log_prob: Float[Array, " b"]


class _Progress(NamedTuple):
    step: Int[Array, ""]
    cache: Cache
    logits: Float[Array, "b k"]
    state: Int[Array, " b"]
    columns: Int[Array, "b max_tokens"]
    log_prob: Float[Array, " b"]


Generate = Callable[[nnx.State, Int[Array, " t"], Key[Array, " b"]], Samples]


def make_generate(graph: nnx.GraphDef, automaton: TokenAutomaton, sampler: Sampler) -> Generate:
    """Returns jitted `generate(params, prompt, keys)`: one row for each key, all with the same prompt.

    A row depends on its key alone, not on its neighbours, so a seed gives the same samples in any batch size (up
    to rounding, where the compiler orders sums otherwise).
    """
    tables, start, end, limit = to_device(automaton), automaton.start, automaton.end, automaton.max_tokens

    def generate(params: nnx.State, prompt: Array, keys: Array) -> Samples:
        model: Llama = nnx.merge(graph, params)
        rows = keys.shape[0]
        # The prompt is read once and its cache is shared out.
        cache = empty_cache(model.cfg, batch=1, capacity=prompt.shape[0] + limit)
        hidden, cache = model.extend(prompt[None], jnp.ones((1, prompt.shape[0]), bool), cache)
        logits = model.unembed(hidden[:, -1:], tables.token_ids)[:, 0]
        cache, logits = jax.tree.map(
            lambda x: jnp.broadcast_to(x, (rows, *x.shape[1:])) if x.ndim else x, (cache, logits)
        )
        first = _Progress(
            step=jnp.zeros((), jnp.int32),
            cache=cache,
            logits=logits,
            state=jnp.full(rows, start, jnp.int32),
            columns=jnp.zeros((rows, limit), jnp.int32),
            log_prob=jnp.zeros(rows),
        )

        def unfinished(progress: _Progress) -> Array:
            return (progress.state != end).any()

        def step(progress: _Progress) -> _Progress:
            logits = mask_logits(tables, progress.state, progress.logits)
            column = sampler.draw(jax.vmap(jax.random.fold_in, (0, None))(keys, progress.step), logits)
            chosen = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), column[:, None], axis=-1)[:, 0]
            hidden, cache = model.extend(tables.token_ids[column][:, None], jnp.ones((rows, 1), bool), progress.cache)
            return _Progress(
                progress.step + 1,
                cache,
                model.unembed(hidden, tables.token_ids)[:, 0],
                advance(tables, progress.state, column),
                jax.lax.dynamic_update_slice(progress.columns, column[:, None], (0, progress.step)),
                progress.log_prob + chosen,
            )

        last = jax.lax.while_loop(unfinished, step, first)
        written = jnp.arange(limit) < last.step
        end_column = tables.allowed[end].argmax()
        return Samples(tables.token_ids[jnp.where(written, last.columns, end_column)], last.log_prob)

    return jax.jit(generate)
