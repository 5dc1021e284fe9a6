"""Continuous batching: a queue of requests, and slots that are refilled as soon as they are free."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Bool, Float, Int

from crystal_jax.config import ModelConfig, check_length
from crystal_jax.sample.constraints.guide import NEVER
from crystal_jax.sample.constraints.masks import AllowedValueMask, DeviceAutomaton, allowed_mask, to_device
from crystal_jax.sample.engine.decode_step import (
    DecodeState,
    PrefillResult,
    SamplingParams,
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
from crystal_jax.sample.engine.decode_threads import decode_threads, run_threads
from crystal_jax.sample.engine.request import Completion, GenerationRequest
from crystal_jax.sample.engine.shape_buckets import buckets, single
from crystal_jax.sharding import LAYOUTS, on_mesh, platform_of, row_parts, tree_shardings
from crystal_jax.storage.worker_pool import available_workers
from crystal_jax.text.crystal_text import ELEMENTS
from crystal_jax.text.grammar.automaton import TokenAutomaton

_MAX_PROMPTS = 32  # in one prefill


class RunningSequence(NamedTuple):
    """A request in a slot.

    Attributes:
        request: The request.
        num_restarts: Attempts that failed before this one.
    """

    request: GenerationRequest
    num_restarts: int

    @property
    def reject_on_violation(self) -> bool:
        """Whether a violation rejects the sequence; if not, masks enforce its constraints."""
        return self.num_restarts < self.request.max_retries and self.request.temperature > 0


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
class _Read:
    """The last prefill of a decode thread, and the index of each prompt in it."""

    number: dict[tuple[int, ...], int] = dataclasses.field(default_factory=dict)
    prompts: PrefillResult | None = None


class Engine:
    """An inference engine: decodes requests with one model, in a fixed number of slots, with functions compiled once.

    On a mesh, slots and cache are split over its devices. On several hosts, each runs the same engine with the same
    requests: every decision about slots is the same on all of them. On one CPU, the slots are split over threads.
    """

    def __init__(
        self,
        graph: nnx.GraphDef,
        cfg: ModelConfig,
        automaton: TokenAutomaton,
        *,
        mesh: Mesh,
        rows: int,
        prompt_tokens: int,
        steps: int = 8,
        jump: bool = True,
        sorted_sites: bool = False,
        coded: bool = False,
        lanes: int | None = None,
    ):
        """Prepares the compiled functions and puts the tables of the grammar on the devices.

        Args:
            graph: Graph definition of the model.
            cfg: Configuration of the model.
            automaton: The grammar.
            mesh: Device mesh that holds the parameters.
            rows: Number of slots; rounded up to a multiple of the devices, or threads, that split them.
            prompt_tokens: Length of the longest prompt, BOS included.
            steps: Decode steps between two reads of the state by the host.
            jump: Append tokens that the grammar forces without a decode step of their own.
            sorted_sites: Sites have an order; while a request has retries left, a violation of the order rejects its
                sequence.
            coded: Keep keys and values in 8 bits.
            lanes: Decode threads that share the slots, on one CPU; by default one per 32 slots, at most one per core.

        Raises:
            UserError: the longest sequence has more tokens than the model can read.
        """
        check_length(cfg, prompt_tokens + automaton.max_tokens - 1)  # the model never reads EOS
        self.mesh, self._automaton = mesh, automaton
        platform = platform_of(mesh)
        one_cpu = mesh.size == 1 and platform == "cpu"
        # On one device, the tokens of all slots are packed without padding (model/ragged.py). On several devices,
        # packing would move tokens between them. On TPU a decode step is bound by memory bandwidth, so saving
        # arithmetic does not pay.
        packed = mesh.size == 1 and platform != "tpu"
        self._lanes = (lanes or decode_threads(rows, available_workers())) if one_cpu else 1
        split = self._lanes * row_parts(mesh)
        self._rows = (rows + -rows % split) // self._lanes
        self._prompt_tokens = prompt_tokens
        tables = to_device(automaton, jump=jump, sorted_sites=sorted_sites)
        layout = LAYOUTS[platform]

        # On CPU, the time of a step grows with the slots and the cache capacity. Elsewhere, few compiled programs are
        # worth more than small shapes: TPU and GPU read all weights in each step, and cuDNN attends to filled positions
        # only.
        self._chunk = 1 + tables.forced.shape[1]
        room = automaton.max_tokens + self._chunk - 1
        if one_cpu:
            self._sizes = buckets(self._rows, prompt_tokens=prompt_tokens, room=room)
        else:
            self._sizes = single(self._rows, prompt_tokens + room)

        def begin(tables: DeviceAutomaton) -> DecodeState:
            return init_decode_state(
                cfg,
                tables,
                rows=self._rows,
                prompt_tokens=prompt_tokens,
                max_tokens=automaton.max_tokens,
                capacity=self._sizes.capacities[0],
                layout=layout,
                coded=coded,
            )

        def advance(
            params: nnx.State,
            layers: list[nnx.State] | None,
            tables: DeviceAutomaton,
            rows: DecodeState,
            grants: AllowedValueMask,
        ) -> tuple[DecodeState, StepOutput]:
            def unfinished(carry: tuple) -> jax.Array:
                goes_on = is_active(tables, carry[1], grants).any() & ~is_full(tables, carry[1]).any()
                return (carry[0] < steps) & goes_on

            model = nnx.merge(graph, params)
            budget = max_batched_tokens(len(rows.state), tables) if packed else None

            def step(carry: tuple) -> tuple:
                return carry[0] + 1, decode_step(model, tables, carry[1], grants, layers=layers, budget=budget)

            with on_mesh(mesh):
                _, rows = jax.lax.while_loop(unfinished, step, (jnp.zeros((), jnp.int32), rows))
            ended, goes_on = rows.state == tables.end, is_active(tables, rows, grants)
            sampling = rows.sampling
            left = allowed_mask(
                tables, sampling.limits, grants, rows.progress, rows.state, sampling.reject_on_violation
            )
            stuck = rows.rejected | (goes_on & ~(left & tables.allowed[rows.state]).any(axis=-1))
            return rows, StepOutput(
                ended=ended,
                waits=~ended & ~goes_on & ~rows.rejected,
                stuck=stuck,
                crowded=is_full(tables, rows),
                length=rows.cache.length,
                written=rows.written,
                columns=rows.columns,
                log_probs=rows.log_probs,
                log_allowed_mass=rows.log_allowed_mass,
            )

        def read(params: nnx.State, tables: DeviceAutomaton, tokens: jax.Array, count: jax.Array) -> PrefillResult:
            with on_mesh(mesh):
                return prefill(nnx.merge(graph, params), tables, tokens, count, layout=layout)

        # Every process needs all of the outputs that its host reads, and every device all of the tables: they are
        # replicated.
        whole = NamedSharding(mesh, jax.P())
        where = tree_shardings(jax.eval_shape(begin, tables), mesh, decode_rules(layout))
        self._tables = jax.device_put(tables, whole)
        self._begin = jax.jit(begin, out_shardings=where)
        self._advance = jax.jit(advance, donate_argnums=3, out_shardings=(where, whole))
        self._refill = jax.jit(insert, donate_argnums=1, out_shardings=where)
        self._prefill = jax.jit(read, out_shardings=whole)
        # Called once per run: unstacking the layers within the loop of decode steps would copy the weights in each
        # call.
        self._layers = jax.jit(lambda params: None if layout == "stacked" else nnx.merge(graph, params).layers())
        self._resize = jax.jit(resize, static_argnames="capacity", out_shardings=where)

        def key(seed: jax.Array, index: jax.Array, attempt: jax.Array) -> jax.Array:
            return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), index), attempt)

        self._keys = jax.jit(jax.vmap(key))

    def run(self, params: nnx.State, requests: Iterable[GenerationRequest]) -> Generator[Completion, None, None]:
        """Yields the completion of each request as soon as it is finished, in no particular order.

        Args:
            params: Parameters of the model.
            requests: Requests; they are taken from the iterable as slots become free.

        Raises:
            ValueError: a prompt is longer than `prompt_tokens`, or the limits ask for a composition that the grammar
                cannot write.
        """
        layers = self._layers(params)
        return run_threads(functools.partial(self._lane, params, layers), requests, lanes=self._lanes)

    def _lane(
        self,
        params: nnx.State,
        layers: list[nnx.State] | None,
        requests: Iterator[GenerationRequest],
        stop: threading.Event,
    ) -> Iterator[Completion]:
        """Decodes the requests that this thread takes; it changes nothing in the engine, so threads may share it."""
        waiting, again = (RunningSequence(request, 0) for request in requests), deque[RunningSequence]()
        given: list[RunningSequence | None] = [None] * self._rows
        every = np.ones((self._rows, len(self._automaton.values)), bool)
        grants, changed = AllowedValueMask(every, np.full(self._rows, NEVER)), True
        rows, read = self._begin(self._tables), _Read()
        full, length = False, np.zeros(self._rows, int)
        while not stop.is_set():
            placed: dict[int, RunningSequence] = {}
            for row, begun in enumerate(given):
                if begun is None and (begun := again.popleft() if again else next(waiting, None)):
                    given[row] = placed[row] = begun
                    length[row] = len(begun.request.prompt)
                    changed |= self._ask(grants, row, begun.request, ())
            for some in _few_prompts(placed):
                rows = self._refill(self._tables, rows, *self._arrays(params, some, len(given), read))
            texts = [row for row, begun in enumerate(given) if begun]
            if not texts:
                return
            if (count := self._sizes.rows_for(len(texts))) < len(given) or full:
                kept = np.array(texts + [-1] * (count - len(texts)))
                capacity = self._sizes.capacity_for(length[texts].max() + self._chunk)
                rows = self._resize(self._tables, rows, kept, capacity=capacity)
                given, length = [given[row] if row >= 0 else None for row in kept], length[kept]
                grants, changed = AllowedValueMask(grants.open[kept], grants.until[kept]), True
            if changed:
                on_device, changed = jax.tree.map(jnp.array, grants), False
            rows, shown = self._advance(params, layers, self._tables, rows, on_device)
            seen: StepOutput = jax.device_get(shown)
            full, length = bool(seen.crowded.any()), np.array(seen.length)
            for row, begun in enumerate(given):
                if begun is None:
                    continue
                if seen.waits[row]:
                    written = seen.columns[row, : seen.written[row]]
                    changed |= self._ask(grants, row, begun.request, self._automaton.read(written.tolist()))
                elif seen.stuck[row] and begun.num_restarts + 1 < begun.request.max_retries + begun.request.attempts:
                    again.append(RunningSequence(begun.request, begun.num_restarts + 1))
                    given[row] = None
                elif seen.ended[row] or seen.stuck[row]:
                    yield self._finished(begun, seen, row)
                    given[row] = None

    def _ask(self, grants: AllowedValueMask, row: int, request: GenerationRequest, fields: Sequence[str]) -> bool:
        """Updates a slot's mask with its guide's answer after these fields; returns whether the mask has changed."""
        if request.guide is None:
            fresh = bool(grants.until[row] != NEVER)
            grants.open[row], grants.until[row] = True, NEVER
            return fresh
        grant = request.guide(fields)
        grants.open[row], grants.until[row] = True, grant.until
        for field, mask in grant.open.items():
            grants.open[row, self._automaton.fields[field]] = mask
        return True

    def _finished(self, begun: RunningSequence, seen: StepOutput, row: int) -> Completion:
        complete = bool(seen.ended[row])
        written = seen.columns[row, : seen.written[row] - complete]  # without EOS
        return Completion(
            request=begun.request,
            ids=tuple(self._automaton.token_ids[written].tolist()),
            log_probs=tuple(seen.log_probs[row, : seen.written[row]].tolist()),
            log_allowed_mass=float(seen.log_allowed_mass[row]),
            num_restarts=begun.num_restarts + (not complete),
            complete=complete,
        )

    def _arrays(
        self, params: nnx.State, placed: Mapping[int, RunningSequence], rows: int, read: _Read
    ) -> tuple[PrefillResult, SamplingParams, np.ndarray]:
        """Returns the arguments of `insert`: prefilled prompts, sampling parameters, and the prompt of each slot."""
        for begun in placed.values():
            self._check(begun.request)
        number, prompts = self._prompts(params, {begun.request.prompt: None for begun in placed.values()}, read)
        source = np.full(rows, -1, np.int32)
        for row, begun in placed.items():
            source[row] = number[begun.request.prompt]
        any_row = next(iter(placed.values()))
        begins = [placed.get(row, any_row) for row in range(rows)]
        asked = [begun.request for begun in begins]
        numbers = np.array(
            [(begun.request.seed, begun.request.index, begun.request.first + begun.num_restarts) for begun in begins]
        )
        sampling = SamplingParams(
            key=self._keys(*numbers.T),
            temperature=jnp.array([r.temperature for r in asked]),
            top_p=jnp.array([r.top_p for r in asked]),
            limits=jax.tree.map(lambda *rows: np.stack(rows), *(r.limits for r in asked)),
            reject_on_violation=jnp.array([begun.reject_on_violation for begun in begins]),
        )
        return prompts, sampling, source

    def _prompts(
        self, params: nnx.State, wanted: Iterable[tuple[int, ...]], read: _Read
    ) -> tuple[dict[tuple[int, ...], int], PrefillResult]:
        """Returns the index of each prompt and their prefill; reuses the last prefill if it holds all of them."""
        number = {prompt: i for i, prompt in enumerate(wanted)}
        if read.prompts is None or not number.keys() <= read.number.keys():
            # Padded to a power of two, so that few shapes are compiled.
            tokens = np.zeros((1 << (len(number) - 1).bit_length(), self._prompt_tokens), np.int32)
            count = np.ones(len(tokens), np.int32)
            for prompt, i in number.items():
                tokens[i, : len(prompt)], count[i] = prompt, len(prompt)
            read.number, read.prompts = number, self._prefill(params, self._tables, tokens, count)
        return read.number, read.prompts

    def _check(self, request: GenerationRequest) -> None:
        if len(request.prompt) > self._prompt_tokens:
            raise ValueError(f"a prompt of {len(request.prompt)} tokens; there is room for {self._prompt_tokens}")
        most = int(request.limits.max_atoms)
        # Without a formula, the grammar ends a sequence at its maximum number of atoms. With a formula, that could cut
        # the composition short.
        if request.limits.formula.any() and most > self._automaton.max_atoms:
            raise ValueError(f"max_atoms={most}; there is room for {self._automaton.max_atoms}")
        elements = [ELEMENTS.index(symbol) for symbol in self._automaton.elements]
        beyond = np.delete(request.limits.formula, elements)
        if beyond.any() or not request.limits.elements[elements].any():
            raise ValueError("the tokenizer cannot write the elements that are asked for")
        if request.guide is not None and not self._automaton.separate:
            raise ValueError(
                "the tokenizer has tokens that end one number and begin the next: no guide can stop between"
            )


def _few_prompts(placed: Mapping[int, RunningSequence]) -> Iterator[dict[int, RunningSequence]]:
    """Splits newly placed sequences into groups of few different prompts: a prefill is replicated on every device."""
    some: dict[int, RunningSequence] = {}
    prompts: set[tuple[int, ...]] = set()
    for row, begun in placed.items():
        if len(prompts | {begun.request.prompt}) > _MAX_PROMPTS:
            yield some
            some, prompts = {}, set()
        some[row] = begun
        prompts.add(begun.request.prompt)
    if some:
        yield some
