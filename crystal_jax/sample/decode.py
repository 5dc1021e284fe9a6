"""Sampling on the device: one prompt, many rows, a KV cache, and the grammar at every step."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key

from crystal_jax.model.llama import Cache, Llama, empty_cache
from crystal_jax.sample.constraints import DeviceAutomaton, advance, mask_logits, to_device
from crystal_jax.sharding import DECODE_RULES, on_mesh, tree_shardings
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


class Progress(NamedTuple):
    """What is carried from token to token.

    Attributes:
        step: Tokens written so far.
        cache: Of the prompt and of what is written.
        logits: Of the next token, over the grammar's columns.
        state: Where each row is in the grammar.
        columns: What is written, as columns of the grammar.
        log_prob: As in `Samples`, so far.
    """

    step: Int[Array, ""]
    cache: Cache
    logits: Float[Array, "b k"]
    state: Int[Array, " b"]
    columns: Int[Array, "b max_tokens"]
    log_prob: Float[Array, " b"]


Generate = Callable[[nnx.State, Int[Array, " t"], Key[Array, " b"]], Samples]


def read_prompt(
    model: Llama,
    tables: DeviceAutomaton,
    prompt: Int[Array, " t"],
    *,
    rows: int,
    start: int,
    max_tokens: int,
    stacked: bool = False,
) -> Progress:
    """The state before the first token; all rows have the same prompt.

    It is read once and its cache is shared out. `stacked` loops over the layers (see `Cache`).
    """
    cache = empty_cache(model.cfg, batch=1, capacity=prompt.shape[0] + max_tokens, stacked=stacked)
    hidden, cache = model.extend(prompt[None], jnp.ones((1, prompt.shape[0]), bool), cache)
    keys, values = jax.tree.map(lambda x: jnp.repeat(x, rows, axis=int(stacked)), (cache.keys, cache.values))
    return Progress(
        step=jnp.zeros((), jnp.int32),
        cache=Cache(keys, values, jnp.repeat(cache.valid, rows, axis=0), cache.length),
        logits=jnp.repeat(model.unembed(hidden[:, -1:], tables.token_ids)[:, 0], rows, axis=0),
        state=jnp.full(rows, start, jnp.int32),
        columns=jnp.zeros((rows, max_tokens), jnp.int32),
        log_prob=jnp.zeros(rows),
    )


def write_token(
    model: Llama, tables: DeviceAutomaton, sampler: Sampler, keys: Key[Array, " b"], progress: Progress
) -> Progress:
    """Draws one token in each row, and reads it."""
    logits = mask_logits(tables, progress.state, progress.logits)
    column = sampler.draw(jax.vmap(jax.random.fold_in, (0, None))(keys, progress.step), logits)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), column[:, None], axis=-1)[:, 0]
    valid = jnp.ones((column.shape[0], 1), bool)
    hidden, cache = model.extend(tables.token_ids[column][:, None], valid, progress.cache)
    return Progress(
        progress.step + 1,
        cache,
        model.unembed(hidden, tables.token_ids)[:, 0],
        advance(tables, progress.state, column),
        jax.lax.dynamic_update_slice(progress.columns, column[:, None], (0, progress.step)),
        progress.log_prob + chosen,
    )


def make_generate(
    graph: nnx.GraphDef, automaton: TokenAutomaton, sampler: Sampler, mesh: Mesh | None = None
) -> Generate:
    """Returns jitted `generate(params, prompt, keys)`: one row for each key, all with the same prompt.

    A row depends on its key alone, not on its neighbours, so a seed gives the same samples in any batch size (up
    to rounding, where the compiler orders sums otherwise). On a mesh the rows and the cache are split over it.
    """
    tables, end, limit = to_device(automaton), automaton.end, automaton.max_tokens
    stacked = mesh is not None and mesh.devices.flat[0].platform == "tpu"

    def generate(params: nnx.State, prompt: Array, keys: Array) -> Samples:
        with contextlib.nullcontext() if mesh is None else on_mesh(mesh):
            return traced(params, prompt, keys)

    def traced(params: nnx.State, prompt: Array, keys: Array) -> Samples:
        model: Llama = nnx.merge(graph, params)
        first = read_prompt(
            model, tables, prompt, rows=keys.shape[0], start=automaton.start, max_tokens=limit, stacked=stacked
        )
        if mesh is not None:
            first = jax.lax.with_sharding_constraint(first, tree_shardings(first, mesh, DECODE_RULES))

        def unfinished(progress: Progress) -> Array:
            return (progress.state != end).any()

        def step(progress: Progress) -> Progress:
            return write_token(model, tables, sampler, keys, progress)

        last = jax.lax.while_loop(unfinished, step, first)
        written = jnp.arange(limit) < last.step
        end_column = tables.allowed[end].argmax()
        return Samples(tables.token_ids[jnp.where(written, last.columns, end_column)], last.log_prob)

    return jax.jit(generate)
