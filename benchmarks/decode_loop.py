"""Decode steps in a loop on the device, as in the sampler: with the grammar and limits, and without."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from crystal_jax.config import Experiment
from crystal_jax.model.transformer import Transformer
from crystal_jax.sample.constraints.guide import NEVER
from crystal_jax.sample.constraints.masks import AllowedValueMask, DeviceAutomaton, make_limits, to_device
from crystal_jax.sample.engine.decode_state import DecodeState, init_decode_state
from crystal_jax.sample.engine.decode_step import decode_step, max_batched_tokens
from crystal_jax.sample.engine.draw import draw
from crystal_jax.sharding import LAYOUTS, on_mesh, platform_of
from crystal_jax.text.grammar.automaton import TokenAutomaton

STEPS = 32  # of a timed loop: fewer than any crystal takes
PROMPT_TOKENS = 32

Layers = list[nnx.State]
Step = Callable[[Transformer, Layers, DecodeState], DecodeState]


class Decoder(NamedTuple):
    """A model and the grammar that it is sampled under."""

    graph: nnx.GraphDef
    params: nnx.State
    experiment: Experiment
    automaton: TokenAutomaton
    mesh: jax.sharding.Mesh

    def begin(self, rows: int) -> tuple[DeviceAutomaton, DecodeState, AllowedValueMask]:
        """The grammar on the device, and rows at the start of a crystal whose composition is asked for."""
        rng = np.random.default_rng(0)
        tables = to_device(self.automaton)
        free = init_decode_state(
            self.experiment.model,
            tables,
            rows=rows,
            prompt_tokens=PROMPT_TOKENS,
            max_tokens=self.automaton.max_tokens,
            layout=LAYOUTS[platform_of(self.mesh)],
        )
        limits = make_limits(formula="LiFePO4", max_atoms=self.automaton.max_atoms)
        begun = free._replace(
            cache=free.cache.replace(length=jnp.full(rows, PROMPT_TOKENS, jnp.int32)),
            logits=jnp.asarray(rng.normal(size=free.logits.shape), jnp.float32),
            state=jnp.broadcast_to(tables.start, rows),
            sampling=free.sampling._replace(
                temperature=jnp.ones(rows),
                top_p=jnp.ones(rows),
                limits=jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (rows, *np.shape(leaf))), limits),
            ),
        )
        return (
            tables,
            begun,
            AllowedValueMask(jnp.ones((rows, len(self.automaton.values)), bool), jnp.full(rows, NEVER)),
        )

    def bytes_read(self, rows: DecodeState) -> int:
        """Returns the bytes that a step must read: the blocks, the grammar's part of the head, all cache positions."""
        blocks = sum(leaf.nbytes for leaf in jax.tree.leaves(self.params["blocks"]))
        width = jnp.dtype(self.experiment.model.dtype).itemsize
        head = self.automaton.token_ids.size * self.experiment.model.embed_dim * width
        return blocks + head + sum(leaf.nbytes for leaf in jax.tree.leaves((rows.cache.keys, rows.cache.values)))


def masked_step(tables: DeviceAutomaton, grants: AllowedValueMask) -> Step:
    """The sampler's step."""

    def step(model: Transformer, layers: Layers, rows: DecodeState) -> DecodeState:
        return decode_step(
            model, tables, rows, grants, layers=layers, budget=max_batched_tokens(len(rows.state), tables)
        )

    return step


def bare_step(tables: DeviceAutomaton) -> Step:
    """The model, and a draw from its logits; as many tokens are read as with the grammar, and nothing is forbidden."""

    def step(model: Transformer, layers: Layers, rows: DecodeState) -> DecodeState:
        keys = jax.vmap(jax.random.fold_in)(rows.sampling.key, rows.written)
        column = draw(keys, rows.logits, rows.sampling.temperature, rows.sampling.top_p)
        chunk = jnp.broadcast_to(tables.token_ids[column][:, None], (len(column), 1 + tables.forced.shape[1]))
        budget = max_batched_tokens(len(column), tables)
        hidden, cache = model.decode_forward(chunk, jnp.ones_like(column), rows.cache, layers=layers, budget=budget)
        logits = model.unembed(hidden[:, :1], tables.token_ids)[:, 0]
        return rows._replace(cache=cache, logits=logits, written=rows.written + 1)

    return step


def step_seconds(step: Step, decoder: Decoder, rows: DecodeState, *, rounds: int = 5) -> list[float]:
    """Seconds of a decode step, many of which run in one loop on the device, in each round."""
    layers = jax.jit(lambda params: nnx.merge(decoder.graph, params).layers())(decoder.params)

    def loop(params: nnx.State, layers: Layers, rows: DecodeState) -> DecodeState:
        model = nnx.merge(decoder.graph, params)
        with on_mesh(decoder.mesh):
            return jax.lax.fori_loop(0, STEPS, lambda _, rows: step(model, layers, rows), rows)

    compiled = jax.jit(loop, donate_argnums=2)
    times = []
    for _ in range(1 + rounds):
        copy = jax.block_until_ready(jax.tree.map(jnp.copy, rows))
        start = time.perf_counter()
        jax.block_until_ready(compiled(decoder.params, layers, copy))
        times.append((time.perf_counter() - start) / STEPS)
    return times[1:]  # the first compiles
