"""The compiled functions of the engine, for one model, grammar and mesh."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Bool, Float, Int

from crystal_jax.config import ModelConfig
from crystal_jax.sample.constraints.masks import AllowedValueMask, DeviceAutomaton, allowed_mask
from crystal_jax.sample.engine.decode_step import (
    DecodeState,
    PrefillResult,
    decode_rules,
    decode_step,
    init_decode_state,
    insert,
    is_active,
    is_full,
    max_batched_tokens,
    prefill,
    resize,
)
from crystal_jax.sharding import LAYOUTS, on_mesh, platform_of, tree_shardings

Layers = list[nnx.State]


class StepOutput(NamedTuple):
    """The part of the decode state that the host reads after a call of several decode steps.

    Attributes:
        ended: Slots that are free or whose sequence is finished.
        waits: Slots that wait for their guide.
        stuck: Slots that were rejected or have no allowed token.
        crowded: Slots whose cache has no room for another step (`is_full`).
        length: Filled positions in the cache of each slot.
        written: See `DecodeState`.
        columns: See `DecodeState`.
        log_probs: See `DecodeState`.
        log_allowed_mass: See `DecodeState`.
    """

    ended: Bool[Array, " b"]
    waits: Bool[Array, " b"]
    stuck: Bool[Array, " b"]
    crowded: Bool[Array, " b"]
    length: Int[Array, " b"]
    written: Int[Array, " b"]
    columns: Int[Array, "b n"]
    log_probs: Float[Array, "b n"]
    log_allowed_mass: Float[Array, " b"]


@dataclasses.dataclass
class Programs:
    """The jitted functions of an engine. Arrays that the host reads are replicated over the mesh.

    Attributes:
        tables: The grammar's tables, on every device.
        begin: () → `DecodeState` of free slots.
        prefill: (params, tokens [n, t], count [n]) → `PrefillResult`.
        insert: (state, prompts, sampling, source [b]) → state; the state is donated.
        advance: (params, layers, state, mask) → (state, `StepOutput`): several decode steps; the state is donated.
        resize: (state, kept [c], capacity) → state.
        layers: params → parameters of each layer; None on TPUs, which loop over the layers.
        keys: (seed [b], index [b], attempt [b]) → random keys.
    """

    tables: DeviceAutomaton
    begin: Callable[[], DecodeState]
    prefill: Callable[..., PrefillResult]
    insert: Callable[..., DecodeState]
    advance: Callable[..., tuple[DecodeState, StepOutput]]
    resize: Callable[..., DecodeState]
    layers: Callable[[nnx.State], Layers | None]
    keys: Callable[..., Any]


def make_programs(
    graph: nnx.GraphDef,
    cfg: ModelConfig,
    tables: DeviceAutomaton,
    mesh: Mesh,
    *,
    rows: int,
    capacity: int,
    prompt_tokens: int,
    max_tokens: int,
    steps: int,
    coded: bool,
    packed: bool,
) -> Programs:
    """Defines the functions; each is compiled when it is first called.

    Args:
        graph: Graph definition of the model.
        cfg: Configuration of the model.
        tables: Tables of the grammar.
        mesh: Device mesh that holds the parameters.
        rows: Number of slots.
        capacity: Positions of the cache to begin with.
        prompt_tokens: Length of the longest prompt.
        max_tokens: Length of the longest sequence, EOS included.
        steps: Decode steps of a call of `advance`, at most.
        coded: Keep keys and values in 8 bits.
        packed: Compute the tokens of all slots side by side, without padding (model/ragged.py).
    """
    layout = LAYOUTS[platform_of(mesh)]

    def begin(tables: DeviceAutomaton) -> DecodeState:
        return init_decode_state(
            cfg,
            tables,
            rows=rows,
            prompt_tokens=prompt_tokens,
            max_tokens=max_tokens,
            capacity=capacity,
            layout=layout,
            coded=coded,
        )

    def advance(
        params: nnx.State, layers: Layers | None, tables: DeviceAutomaton, state: DecodeState, mask: AllowedValueMask
    ) -> tuple[DecodeState, StepOutput]:
        def unfinished(carry: tuple) -> jax.Array:
            goes_on = is_active(tables, carry[1], mask).any() & ~is_full(tables, carry[1]).any()
            return (carry[0] < steps) & goes_on

        model = nnx.merge(graph, params)
        budget = max_batched_tokens(len(state.state), tables) if packed else None

        def step(carry: tuple) -> tuple:
            return carry[0] + 1, decode_step(model, tables, carry[1], mask, layers=layers, budget=budget)

        with on_mesh(mesh):
            _, state = jax.lax.while_loop(unfinished, step, (jnp.zeros((), jnp.int32), state))
        return state, _output(tables, state, mask)

    def read(params: nnx.State, tables: DeviceAutomaton, tokens: jax.Array, count: jax.Array) -> PrefillResult:
        with on_mesh(mesh):
            return prefill(nnx.merge(graph, params), tables, tokens, count, layout=layout)

    def key(seed: jax.Array, index: jax.Array, attempt: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), index), attempt)

    # Every process needs all of the outputs that its host reads, and every device all of the tables: they are
    # replicated.
    whole = NamedSharding(mesh, jax.P())
    where = tree_shardings(jax.eval_shape(begin, tables), mesh, decode_rules(layout))
    tables = jax.device_put(tables, whole)
    jitted_begin = jax.jit(begin, out_shardings=where)
    jitted_read = jax.jit(read, out_shardings=whole)
    jitted_insert = jax.jit(insert, donate_argnums=1, out_shardings=where)
    jitted_advance = jax.jit(advance, donate_argnums=3, out_shardings=(where, whole))
    jitted_resize = jax.jit(resize, static_argnames="capacity", out_shardings=where)
    return Programs(
        tables=tables,
        begin=lambda: jitted_begin(tables),
        prefill=lambda params, tokens, count: jitted_read(params, tables, tokens, count),
        insert=lambda state, *arrays: jitted_insert(tables, state, *arrays),
        advance=lambda params, layers, state, mask: jitted_advance(params, layers, tables, state, mask),
        resize=lambda state, kept, *, capacity: jitted_resize(tables, state, kept, capacity=capacity),
        # Called once per run: unstacking the layers within the loop of decode steps would copy the weights in each
        # call.
        layers=jax.jit(lambda params: None if layout == "stacked" else nnx.merge(graph, params).layers()),
        keys=jax.jit(jax.vmap(key)),
    )


def _output(tables: DeviceAutomaton, state: DecodeState, mask: AllowedValueMask) -> StepOutput:
    """Returns what the host reads of the state."""
    ended, goes_on = state.state == tables.end, is_active(tables, state, mask)
    sampling = state.sampling
    left = allowed_mask(tables, sampling.limits, mask, state.progress, state.state, sampling.reject_on_violation)
    stuck = state.rejected | (goes_on & ~(left & tables.allowed[state.state]).any(axis=-1))
    return StepOutput(
        ended=ended,
        waits=~ended & ~goes_on & ~state.rejected,
        stuck=stuck,
        crowded=is_full(tables, state),
        length=state.cache.length,
        written=state.written,
        columns=state.columns,
        log_probs=state.log_probs,
        log_allowed_mass=state.log_allowed_mass,
    )
