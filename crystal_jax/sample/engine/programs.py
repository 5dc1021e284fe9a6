"""The compiled functions of the engine, for one model, grammar and mesh."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Bool, Float, Int

from crystal_jax.config import ModelConfig
from crystal_jax.model.parameters import ModelGraph, Params
from crystal_jax.program_cache import ProgramCache
from crystal_jax.sample.constraints.masks import DeviceAutomaton
from crystal_jax.sample.engine.attempts import (
    RULES,
    Answers,
    Placement,
    Slots,
    answer,
    grow_slots,
    init_slots,
    place,
    restart,
)
from crystal_jax.sample.engine.decode_state import PrefillResult, decode_rules, init_decode_state, is_active, is_full
from crystal_jax.sample.engine.decode_step import decode_step, max_batched_tokens, prefill
from crystal_jax.sharding import LAYOUTS, Layout, on_mesh, platform_of, tree_shardings

Layers = list[Params]

# The host answers guides when no more than this share of the slots goes on without an answer: a decode step takes as
# long for few active slots as for many, and the host takes less than a step.
MIN_SHARE_ACTIVE = 0.5


class StepOutput(NamedTuple):
    """The part of the slots' state that the host reads after a call of several decode steps.

    Attributes:
        ended: Slots that are free or whose sequence is finished.
        waits: Slots that wait for their guide.
        failed: Slots whose last attempt was rejected.
        full: Slots whose cache has no room for another step.
        number: Attempts of each slot that failed before the present one.
        written: See `DecodeState`.
        columns: See `DecodeState`.
        log_probs: See `DecodeState`.
        log_allowed_mass: See `DecodeState`.
    """

    ended: Bool[Array, " b"]
    waits: Bool[Array, " b"]
    failed: Bool[Array, " b"]
    full: Bool[Array, " b"]
    number: Int[Array, " b"]
    written: Int[Array, " b"]
    columns: Int[Array, "b n"]
    log_probs: Float[Array, "b n"]
    log_allowed_mass: Float[Array, " b"]


@dataclasses.dataclass
class Programs:
    """The compiled functions of an engine. Arrays that the host reads are replicated over the mesh.

    Attributes:
        begin: () → free `Slots`.
        prefill: (params, tokens [n, t], count [n]) → `PrefillResult`.
        place: (slots, prompts, placement) → slots; the slots are donated.
        advance: (params, layers, slots, answers) → (slots, `StepOutput`): several decode steps; the slots are donated.
        grow: slots → slots with the next larger capacity.
        layers: params → parameters of each layer; None on TPUs, which loop over the layers.
    """

    begin: Callable[[], Slots]
    prefill: Callable[[Params, np.ndarray, np.ndarray], PrefillResult]
    place: Callable[[Slots, PrefillResult, Placement], Slots]
    advance: Callable[[Params, Layers | None, Slots, Answers], tuple[Slots, StepOutput]]
    grow: Callable[[Slots], Slots]
    layers: Callable[[Params], Layers | None]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class EngineShape:
    """What decides the functions of an engine.

    Attributes:
        graph: Graph definition of the model.
        cfg: Configuration of the model.
        mesh: Device mesh that holds the parameters.
        rows: Number of slots.
        capacities: Positions of the cache, to begin with and to grow to.
        num_values: Number of values of the grammar's fields.
        prompt_tokens: Length of the longest prompt.
        max_tokens: Length of the longest sequence, EOS included.
        steps: Decode steps of a call of `advance`, at most.
        coded: Keep keys and values in 8 bits.
        packed: Compute the tokens of all slots side by side, without padding (model/ragged.py).
    """

    graph: ModelGraph
    cfg: ModelConfig
    mesh: Mesh
    rows: int
    capacities: tuple[int, ...]
    num_values: int
    prompt_tokens: int
    max_tokens: int
    steps: int
    coded: bool
    packed: bool

    @property
    def layout(self) -> Layout:
        """Layout of the cache."""
        return LAYOUTS[platform_of(self.mesh)]

    def begin(self, tables: DeviceAutomaton) -> Slots:
        """Returns free slots."""
        state = init_decode_state(
            self.cfg,
            tables,
            rows=self.rows,
            prompt_tokens=self.prompt_tokens,
            max_tokens=self.max_tokens,
            capacity=self.capacities[0],
            layout=self.layout,
            coded=self.coded,
        )
        return init_slots(state, num_values=self.num_values)

    def prefill(
        self, params: Params, tables: DeviceAutomaton, tokens: Int[Array, "n t"], count: Int[Array, " n"]
    ) -> PrefillResult:
        """Reads prompts."""
        with on_mesh(self.mesh):
            return prefill(nnx.merge(self.graph, params), tables, tokens, count, layout=self.layout)

    def advance(
        self, params: Params, layers: Layers | None, tables: DeviceAutomaton, slots: Slots, answers: Answers
    ) -> tuple[Slots, StepOutput]:
        """Runs decode steps until the host is needed."""
        model = nnx.merge(self.graph, params)
        budget = max_batched_tokens(self.rows, tables) if self.packed else None

        def unfinished(carry: tuple[Int[Array, ""], Slots]) -> Bool[Array, ""]:
            number, slots = carry
            has_room = ~(is_full(tables, slots.rows) & _is_running(slots)).any()
            return (number < self.steps) & has_room & (_share_active(tables, slots) > MIN_SHARE_ACTIVE)

        def step(carry: tuple[Int[Array, ""], Slots]) -> tuple[Int[Array, ""], Slots]:
            number, slots = carry
            stepped = decode_step(model, tables, slots.rows, slots.mask, layers=layers, budget=budget)
            return number + 1, restart(tables, slots._replace(rows=stepped))

        with on_mesh(self.mesh):
            begun = restart(tables, answer(slots, answers))
            _, slots = jax.lax.while_loop(unfinished, step, (jnp.zeros((), jnp.int32), begun))
        return slots, _output(tables, slots)

    def layers(self, params: Params) -> Layers:
        """Returns the parameters of each layer."""
        return nnx.merge(self.graph, params).layers()

    def description(self) -> dict[str, Any]:
        """Returns what decides a program beside its arguments, for the cache of programs."""
        numbers = {
            name: getattr(self, name)
            for name in ("rows", "num_values", "prompt_tokens", "max_tokens", "steps", "coded", "packed")
        }
        model = f"{self.graph!r} {self.cfg!r}"
        return numbers | {"model": model, "layout": self.layout, "capacities": list(self.capacities)}


def make_programs(shape: EngineShape, tables: DeviceAutomaton) -> Programs:
    """Defines the functions; each is compiled, or loaded from the cache of programs, when it is first called."""
    # Every process needs all of the outputs that its host reads, and every device all of the tables: they are
    # replicated.
    whole = NamedSharding(shape.mesh, jax.P())
    where = tree_shardings(jax.eval_shape(shape.begin, tables), shape.mesh, (*decode_rules(shape.layout), *RULES))
    tables = jax.device_put(tables, whole)
    cached = ProgramCache(shape.mesh, shape.description()).program
    jitted_place = jax.jit(place, donate_argnums=1, out_shardings=where)
    jitted_advance = jax.jit(shape.advance, donate_argnums=3, out_shardings=(where, whole))
    run_begin = cached("begin", jax.jit(shape.begin, out_shardings=where))
    run_prefill = cached("prefill", jax.jit(shape.prefill, out_shardings=whole))
    run_place = {size: cached(f"place, capacity {size}", jitted_place) for size in shape.capacities}
    run_advance = {size: cached(f"advance, capacity {size}", jitted_advance) for size in shape.capacities}
    run_grow = {
        old: cached(f"grow to {new}", jax.jit(functools.partial(grow_slots, capacity=new), out_shardings=where))
        for old, new in itertools.pairwise(shape.capacities)
    }
    # Called once per run: unstacking the layers within the loop of decode steps would copy the weights in each call.
    run_layers = cached("layers", jax.jit(shape.layers))

    def advance(params: Params, layers: Layers | None, slots: Slots, answers: Answers) -> tuple[Slots, StepOutput]:
        stepped: tuple[Slots, StepOutput] = run_advance[slots.rows.cache.capacity](
            params, layers, tables, slots, answers
        )
        return stepped

    return Programs(
        begin=lambda: run_begin(tables),
        prefill=lambda params, tokens, count: run_prefill(params, tables, tokens, count),
        place=lambda slots, prompts, placed: run_place[slots.rows.cache.capacity](tables, slots, prompts, placed),
        advance=advance,
        grow=lambda slots: run_grow[slots.rows.cache.capacity](slots),
        layers=lambda params: None if shape.layout == "stacked" else run_layers(params),
    )


def _is_running(slots: Slots) -> Bool[Array, " b"]:
    """Returns True for slots whose sequence was neither rejected nor stopped."""
    running: Bool[Array, " b"] = ~slots.rows.rejected & (slots.mask.until >= 0)
    return running


def _share_active(tables: DeviceAutomaton, slots: Slots) -> Float[Array, ""]:
    """Returns the share of active slots among those that are active or wait for their guide; 0 if there are none."""
    active = is_active(tables, slots.rows, slots.mask)
    waits = (slots.rows.state != tables.end) & _is_running(slots) & ~active
    return active.sum() / jnp.maximum((active | waits).sum(), 1)


def _output(tables: DeviceAutomaton, slots: Slots) -> StepOutput:
    """Returns what the host reads of the state."""
    rows = slots.rows
    ended = rows.state == tables.end
    return StepOutput(
        ended=ended,
        waits=~ended & ~is_active(tables, rows, slots.mask) & ~rows.rejected,
        failed=rows.rejected,
        full=is_full(tables, rows) & _is_running(slots),
        number=slots.retries.number,
        written=rows.written,
        columns=rows.columns,
        log_probs=rows.log_probs,
        log_allowed_mass=rows.log_allowed_mass,
    )
