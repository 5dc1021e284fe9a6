"""Continuous batching: a queue of requests, and slots that are refilled as soon as they are free."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from crystal_jax.sample.constraints.guide import NEVER
from crystal_jax.sample.constraints.masks import AllowedValueMask
from crystal_jax.sample.engine.decode_step import PrefillResult, SamplingParams
from crystal_jax.sample.engine.programs import Layers, Programs, StepOutput
from crystal_jax.sample.engine.request import Completion, GenerationRequest
from crystal_jax.sample.engine.shape_buckets import ShapeBuckets
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

    @property
    def may_restart(self) -> bool:
        """Whether another attempt is left."""
        return self.num_restarts + 1 < self.request.max_retries + self.request.attempts


class Scheduler:
    """The slots of one decode thread and the sequences in them.

    Args:
        programs: The compiled functions.
        params: Parameters of the model.
        layers: Parameters of each layer, from `Programs.layers`.
        automaton: The grammar.
        sizes: Shapes to choose from.
        rows: Number of slots to begin with.
        chunk: Positions that a decode step may fill.
        prompt_tokens: Length of the longest prompt.
    """

    def __init__(
        self,
        programs: Programs,
        params: nnx.State,
        layers: Layers | None,
        automaton: TokenAutomaton,
        *,
        sizes: ShapeBuckets,
        rows: int,
        chunk: int,
        prompt_tokens: int,
    ):
        self._programs, self._params, self._layers, self._automaton = programs, params, layers, automaton
        self._sizes, self._chunk, self._prompt_tokens = sizes, chunk, prompt_tokens
        self._slots: list[RunningSequence | None] = [None] * rows
        self._restarts = deque[RunningSequence]()
        self._state = programs.begin()
        self._length, self._is_full = np.zeros(rows, int), False
        every = np.ones((rows, len(automaton.values)), bool)
        self._mask, self._mask_changed = AllowedValueMask(every, np.full(rows, NEVER)), True
        self._mask_on_device = self._mask
        # The last prefill, and the index of each prompt in it.
        self._prompt_index: dict[tuple[int, ...], int] = {}
        self._prefilled: PrefillResult | None = None

    def run(self, requests: Iterator[GenerationRequest], stop: threading.Event) -> Iterator[Completion]:
        """Yields the completions of the requests that this thread takes, until it is told to stop."""
        while not stop.is_set():
            self._fill_slots(requests)
            if not any(self._slots):
                return
            self._fit_shapes()
            yield from self._take(self._advance())

    def _fill_slots(self, requests: Iterator[GenerationRequest]) -> None:
        """Puts restarted sequences, then new requests, into free slots."""
        placed: dict[int, RunningSequence] = {}
        for slot, running in enumerate(self._slots):
            if running is None and (sequence := self._next_sequence(requests)):
                self._slots[slot] = placed[slot] = sequence
                self._length[slot] = len(sequence.request.prompt)
                self._ask_guide(slot, sequence.request, ())
        for some in _few_prompts(placed):
            self._state = self._programs.insert(self._state, *self._insertion(some))

    def _next_sequence(self, requests: Iterator[GenerationRequest]) -> RunningSequence | None:
        if self._restarts:
            return self._restarts.popleft()
        request = next(requests, None)
        return None if request is None else RunningSequence(request, 0)

    def _fit_shapes(self) -> None:
        """Moves the sequences to the fewest slots that hold them, or to a larger capacity where one is full."""
        running = [slot for slot, sequence in enumerate(self._slots) if sequence]
        count = self._sizes.rows_for(len(running))
        if count == len(self._slots) and not self._is_full:
            return
        kept = np.array(running + [-1] * (count - len(running)))
        capacity = self._sizes.capacity_for(self._length[running].max() + self._chunk)
        self._state = self._programs.resize(self._state, kept, capacity=capacity)
        self._slots = [self._slots[slot] if slot >= 0 else None for slot in kept]
        self._length = self._length[kept]
        self._mask, self._mask_changed = AllowedValueMask(self._mask.open[kept], self._mask.until[kept]), True

    def _advance(self) -> StepOutput:
        """Runs some decode steps."""
        if self._mask_changed:
            self._mask_on_device, self._mask_changed = jax.tree.map(jnp.array, self._mask), False
        self._state, output = self._programs.advance(self._params, self._layers, self._state, self._mask_on_device)
        return jax.device_get(output)

    def _take(self, output: StepOutput) -> Iterator[Completion]:
        """Answers guides, queues restarts, and yields the sequences that are finished."""
        self._is_full, self._length = bool(output.crowded.any()), np.array(output.length)
        for slot, sequence in enumerate(self._slots):
            if sequence is None:
                continue
            if output.waits[slot]:
                written = output.columns[slot, : output.written[slot]]
                self._ask_guide(slot, sequence.request, self._automaton.read(written.tolist()))
            elif output.stuck[slot] and sequence.may_restart:
                self._restarts.append(RunningSequence(sequence.request, sequence.num_restarts + 1))
                self._slots[slot] = None
            elif output.ended[slot] or output.stuck[slot]:
                yield self._completion(sequence, output, slot)
                self._slots[slot] = None

    def _ask_guide(self, slot: int, request: GenerationRequest, fields: Sequence[str]) -> None:
        """Updates a slot's mask with its guide's answer after these fields."""
        mask = self._mask
        if request.guide is None:
            self._mask_changed |= bool(mask.until[slot] != NEVER)
            mask.open[slot], mask.until[slot] = True, NEVER
            return
        answer = request.guide(fields)
        mask.open[slot], mask.until[slot] = True, answer.until
        for field, is_open in answer.open.items():
            mask.open[slot, self._automaton.fields[field]] = is_open
        self._mask_changed = True

    def _completion(self, sequence: RunningSequence, output: StepOutput, slot: int) -> Completion:
        complete = bool(output.ended[slot])
        written = output.columns[slot, : output.written[slot] - complete]  # without EOS
        return Completion(
            request=sequence.request,
            ids=tuple(self._automaton.token_ids[written].tolist()),
            log_probs=tuple(output.log_probs[slot, : output.written[slot]].tolist()),
            log_allowed_mass=float(output.log_allowed_mass[slot]),
            num_restarts=sequence.num_restarts + (not complete),
            complete=complete,
        )

    def _insertion(self, placed: Mapping[int, RunningSequence]) -> tuple[PrefillResult, SamplingParams, np.ndarray]:
        """Returns the arguments of `insert`: prefilled prompts, sampling parameters, and the prompt of each slot."""
        index, prompts = self._prefill(placed)
        source = np.full(len(self._slots), -1, np.int32)
        for slot, sequence in placed.items():
            source[slot] = index[sequence.request.prompt]
        any_sequence = next(iter(placed.values()))
        sequences = [placed.get(slot, any_sequence) for slot in range(len(self._slots))]
        requests = [sequence.request for sequence in sequences]
        numbers = np.array([(s.request.seed, s.request.index, s.request.first + s.num_restarts) for s in sequences])
        sampling = SamplingParams(
            key=self._programs.keys(*numbers.T),
            temperature=jnp.array([r.temperature for r in requests]),
            top_p=jnp.array([r.top_p for r in requests]),
            limits=jax.tree.map(lambda *rows: np.stack(rows), *(r.limits for r in requests)),
            reject_on_violation=jnp.array([sequence.reject_on_violation for sequence in sequences]),
        )
        return prompts, sampling, source

    def _prefill(self, placed: Mapping[int, RunningSequence]) -> tuple[Mapping[tuple[int, ...], int], PrefillResult]:
        """Returns the index of each prompt and their prefill; reuses the last prefill if it holds all of them."""
        wanted = dict.fromkeys(sequence.request.prompt for sequence in placed.values())
        if self._prefilled is None or not wanted.keys() <= self._prompt_index.keys():
            # Padded to a power of two, so that few shapes are compiled.
            tokens = np.zeros((1 << (len(wanted) - 1).bit_length(), self._prompt_tokens), np.int32)
            count = np.ones(len(tokens), np.int32)
            for i, prompt in enumerate(wanted):
                tokens[i, : len(prompt)], count[i] = prompt, len(prompt)
            self._prompt_index = {prompt: i for i, prompt in enumerate(wanted)}
            self._prefilled = self._programs.prefill(self._params, tokens, count)
        return self._prompt_index, self._prefilled


def _few_prompts(placed: Mapping[int, RunningSequence]) -> Iterator[dict[int, RunningSequence]]:
    """Splits newly placed sequences into groups of few different prompts: a prefill is replicated on every device."""
    some: dict[int, RunningSequence] = {}
    prompts: set[tuple[int, ...]] = set()
    for slot, sequence in placed.items():
        if len(prompts | {sequence.request.prompt}) > _MAX_PROMPTS:
            yield some
            some, prompts = {}, set()
        some[slot] = sequence
        prompts.add(sequence.request.prompt)
    if some:
        yield some
