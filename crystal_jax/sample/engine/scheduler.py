"""Continuous batching: a queue of requests, and slots that are refilled as soon as they are free.

A slot makes one attempt after another at its sequence, on the device. When no request waits any more, free slots make
later attempts at the sequences that are still running. The first attempt that succeeds counts, by the attempts' numbers
and not by time, so the result is that of attempts made one after another.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator, Mapping

import jax
import numpy as np

from crystal_jax.model.parameters import Params
from crystal_jax.sample.constraints.guide import NEVER, AllowedValues
from crystal_jax.sample.constraints.masks import AllowedValueMask, CompositionLimits
from crystal_jax.sample.engine.attempts import Answers, Placement
from crystal_jax.sample.engine.decode_state import PrefillResult
from crystal_jax.sample.engine.programs import Layers, Programs, StepOutput
from crystal_jax.sample.engine.request import Completion, GenerationRequest
from crystal_jax.text.grammar.automaton import TokenAutomaton

_STOPPED = -1  # earlier than every field: a slot that waits for an answer from there on is never active


@dataclasses.dataclass
class Task:
    """A request that is being decoded.

    Attributes:
        request: The request.
        runs: Its attempts, in the order of their numbers; only the last run has more than one left.
    """

    request: GenerationRequest
    runs: list[Run] = dataclasses.field(default_factory=list)

    @property
    def max_attempts(self) -> int:
        """Number of attempts after which the request is given up."""
        return self.request.max_retries + self.request.attempts

    def outcome(self) -> Completion | None:
        """Returns the result of the request, or None while it is undecided."""
        for run in self.runs:
            if run.result is None:
                return None
            if run.result.complete:
                return run.result
        last = self.runs[-1]
        return last.result if last.limit >= self.max_attempts else None

    def is_needed(self, run: Run) -> bool:
        """Whether the result of a run may still count: no earlier attempt has succeeded."""
        earlier = self.runs[: self.runs.index(run)]
        return not any(other.result is not None and other.result.complete for other in earlier)


@dataclasses.dataclass(eq=False)
class Run:
    """Consecutive attempts at a request in one slot.

    Attributes:
        task: What they are attempts at.
        number: The present attempt, from 0.
        limit: The number at which the slot makes no further attempt.
        result: Completion of the last attempt, once the slot is free.
    """

    task: Task
    number: int
    limit: int
    result: Completion | None = None


class Scheduler:
    """The slots of one decode thread and the sequences in them.

    Args:
        programs: The compiled functions.
        params: Parameters of the model.
        layers: Parameters of each layer, from `Programs.layers`.
        automaton: The grammar.
        rows: Number of slots.
        prompt_tokens: Length of the longest prompt.
        prompts_at_once: Prompts of one prefill.
    """

    def __init__(
        self,
        programs: Programs,
        params: Params,
        layers: Layers | None,
        automaton: TokenAutomaton,
        *,
        rows: int,
        prompt_tokens: int,
        prompts_at_once: int,
    ):
        self._programs, self._params, self._layers, self._automaton = programs, params, layers, automaton
        self._prompt_tokens, self._prompts_at_once = prompt_tokens, prompts_at_once
        self._runs: list[Run | None] = [None] * rows
        self._state = programs.begin()
        self._answers = self._no_answers()
        # The last prefill, and the index of each prompt in it.
        self._prompt_index: dict[tuple[int, ...], int] = {}
        self._prefilled: PrefillResult | None = None

    def run(self, requests: Iterator[GenerationRequest], stop: threading.Event) -> Iterator[Completion]:
        """Yields the completions of the requests that this thread takes, until it is told to stop."""
        while not stop.is_set():
            self._fill_slots(requests)
            if not any(self._runs):
                return
            output = self._advance()
            yield from self._take(output)
            if any(is_full and run is not None for is_full, run in zip(output.full, self._runs, strict=True)):
                self._state = self._programs.grow(self._state)

    def _fill_slots(self, requests: Iterator[GenerationRequest]) -> None:
        """Puts new requests, then later attempts at running ones, into free slots."""
        placed: dict[int, Run] = {}
        for slot in (slot for slot, run in enumerate(self._runs) if run is None):
            run = self._new_run(requests) or self._next_attempt()
            if run is None:
                break
            self._runs[slot] = placed[slot] = run
        for some in _few_prompts(placed, self._prompts_at_once):
            self._place(some)

    def _new_run(self, requests: Iterator[GenerationRequest]) -> Run | None:
        request = next(requests, None)
        if request is None:
            return None
        task = Task(request)
        task.runs.append(Run(task, 0, task.max_attempts))
        return task.runs[0]

    def _next_attempt(self) -> Run | None:
        """Takes the attempts after the present one from the task that has the fewest runs, if there are any."""
        tasks = {id(run.task): run.task for run in self._runs if run is not None}.values()
        candidates = [task for task in tasks if self._may_split(task)]
        if not candidates:
            return None
        task = min(candidates, key=lambda task: len(task.runs))
        last = task.runs[-1]
        run = Run(task, last.number + 1, last.limit)
        last.limit = run.number
        task.runs.append(run)
        return run

    def _may_split(self, task: Task) -> bool:
        last = task.runs[-1]
        if not task.request.temperature:  # all attempts are the same
            return False
        return last.result is None and last.number + 1 < last.limit and task.is_needed(last)

    def _advance(self) -> StepOutput:
        """Runs some decode steps."""
        self._answers.limit[:] = [0 if run is None else run.limit for run in self._runs]
        self._state, output = self._programs.advance(self._params, self._layers, self._state, self._answers)
        self._answers = self._no_answers()
        on_host: StepOutput = jax.device_get(output)
        return on_host

    def _take(self, output: StepOutput) -> Iterator[Completion]:
        """Answers guides, records attempts that ended, and yields the requests that are decided."""
        ended: dict[int, Task] = {}
        for slot, run in enumerate(self._runs):
            if run is None:
                continue
            run.number = int(output.number[slot])
            if output.waits[slot]:
                written = output.columns[slot, : output.written[slot]]
                fields = self._automaton.read(written.tolist())
                assert run.task.request.guide is not None
                self._answer(slot, run.task.request.guide(fields))
            elif output.ended[slot] or output.failed[slot]:
                run.result = self._completion(run, output, slot)
                self._runs[slot] = None
                ended[id(run.task)] = run.task
        for task in ended.values():
            if outcome := task.outcome():
                yield outcome
                task.runs.clear()
        self._stop_what_is_not_needed()

    def _stop_what_is_not_needed(self) -> None:
        """Frees the slots of attempts whose result cannot count any more."""
        for slot, run in enumerate(self._runs):
            if run is not None and not (run in run.task.runs and run.task.is_needed(run)):
                self._runs[slot] = None
                self._answer(slot, AllowedValues({}, _STOPPED))

    def _no_answers(self) -> Answers:
        rows = len(self._runs)
        mask = AllowedValueMask(np.ones((rows, len(self._automaton.values)), bool), np.full(rows, NEVER, np.int32))
        return Answers(mask, np.zeros(rows, bool), np.zeros(rows, np.int32))

    def _answer(self, slot: int, values: AllowedValues) -> None:
        self._answers.changed[slot] = True
        self._write(self._answers.mask, slot, values)

    def _write(self, mask: AllowedValueMask, slot: int, values: AllowedValues) -> None:
        """Writes a guide's answer into a mask."""
        mask.open[slot], mask.until[slot] = True, values.until
        for field, is_open in values.open.items():
            mask.open[slot, self._automaton.fields[field]] = is_open

    def _completion(self, run: Run, output: StepOutput, slot: int) -> Completion:
        complete = bool(output.ended[slot])
        written = output.columns[slot, : output.written[slot] - complete]  # without EOS
        return Completion(
            request=run.task.request,
            ids=tuple(self._automaton.token_ids[written].tolist()),
            log_probs=tuple(output.log_probs[slot, : output.written[slot]].tolist()),
            log_allowed_mass=float(output.log_allowed_mass[slot]),
            num_restarts=run.number + (not complete),
            complete=complete,
        )

    def _place(self, placed: Mapping[int, Run]) -> None:
        """Starts attempts in slots."""
        index, prompts = self._prefill(placed)
        placement = self._empty_placement(next(iter(placed.values())).task.request.limits)
        for slot, run in placed.items():
            request = run.task.request
            self._answers.changed[slot] = False  # whatever was said to the slot's last sequence
            placement.source[slot] = index[request.prompt]
            placement.seed[slot], placement.sample[slot] = request.seed, request.index
            placement.first[slot], placement.number[slot] = request.first, run.number
            placement.strict[slot], placement.limit[slot] = request.max_retries, run.limit
            placement.temperature[slot], placement.top_p[slot] = request.temperature, request.top_p
            for array, value in zip(placement.limits, request.limits, strict=True):
                array[slot] = value
            if request.guide is not None:
                self._write(placement.mask, slot, request.guide(()))
        self._state = self._programs.place(self._state, prompts, placement)

    def _empty_placement(self, limits: CompositionLimits) -> Placement:
        """Returns a placement of no sequences, as NumPy arrays; `limits` has the shapes of a sequence's limits."""
        rows = len(self._runs)
        return Placement(
            source=np.full(rows, -1, np.int32),
            seed=np.zeros(rows, np.uint32),
            **{name: np.zeros(rows, np.int32) for name in ("sample", "first", "number", "strict", "limit")},
            temperature=np.ones(rows, np.float32),
            top_p=np.ones(rows, np.float32),
            limits=jax.tree.map(lambda leaf: np.zeros((rows, *np.shape(leaf)), np.asarray(leaf).dtype), limits),
            mask=self._no_answers().mask,
        )

    def _prefill(self, placed: Mapping[int, Run]) -> tuple[Mapping[tuple[int, ...], int], PrefillResult]:
        """Returns the index of each prompt and their prefill; reuses the last prefill if it holds all of them."""
        wanted = dict.fromkeys(run.task.request.prompt for run in placed.values())
        if self._prefilled is None or not wanted.keys() <= self._prompt_index.keys():
            tokens = np.zeros((self._prompts_at_once, self._prompt_tokens), np.int32)
            count = np.ones(len(tokens), np.int32)
            for i, prompt in enumerate(wanted):
                tokens[i, : len(prompt)], count[i] = prompt, len(prompt)
            self._prompt_index = {prompt: i for i, prompt in enumerate(wanted)}
            self._prefilled = self._programs.prefill(self._params, tokens, count)
        return self._prompt_index, self._prefilled


def _few_prompts(placed: Mapping[int, Run], most: int) -> Iterator[dict[int, Run]]:
    """Splits newly placed runs into groups of at most this many different prompts, runs of one prompt together."""
    some: dict[int, Run] = {}
    prompts: set[tuple[int, ...]] = set()
    for slot, run in sorted(placed.items(), key=lambda item: item[1].task.request.prompt):
        prompt = run.task.request.prompt
        if len(prompts | {prompt}) > most:
            yield some
            some, prompts = {}, set()
        some[slot] = run
        prompts.add(prompt)
    if some:
        yield some
