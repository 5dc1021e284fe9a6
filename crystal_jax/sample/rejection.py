"""Draws the samples of a run by rejection: they follow the model's distribution conditioned on the constraints.

A composition is drawn, then a crystal of that composition. A sequence that violates its constraints is rejected and
retried, up to `max_retries` times; then another composition is drawn. If this fails too, masks enforce the constraints.
"""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from flax import nnx

from crystal_jax.sample.composition import CompositionSampler
from crystal_jax.sample.engine.engine import Engine
from crystal_jax.sample.engine.request import MAX_ATTEMPTS, Completion, GenerationRequest
from crystal_jax.sample.sample_spec import DRAFT, SampleSpec, SampleSpecBuilder

_COMPOSITIONS = 4  # compositions tried per sample, at most; for the last one, masks enforce the constraints in the end
_DRAFTS = 256  # crystals that are drawn for their formulas in one batch


class SampleResult(NamedTuple):
    """The result of one sample.

    Attributes:
        question: Specification of the sample, with the composition line that was drawn last.
        drawn: The completion.
        num_restarts: Number of rejected compositions and crystals.
    """

    question: SampleSpec
    drawn: Completion
    num_restarts: int


def draw_samples(
    engine: Engine,
    params: nnx.State,
    questions: SampleSpecBuilder,
    compositions: CompositionSampler | None,
    indices: Sequence[int],
    *,
    symbols_of: Callable[[SampleSpec, Completion], Sequence[str]],
    seed: int,
    temperature: float,
    top_p: float,
    max_retries: int,
) -> Generator[SampleResult, None, None]:
    """Yields the result of each sample as soon as it is finished, in no particular order.

    Args:
        engine: Decodes the crystals.
        params: Parameters of the model.
        questions: Builds the specification of each sample.
        compositions: Draws composition lines, if the text format has them.
        indices: Numbers of the samples. A sample depends only on its own number and on the settings below.
        symbols_of: Returns the element of each site of a complete sequence.
        seed: Random seed of the run.
        temperature: Temperature for compositions and crystals.
        top_p: Share of the probability to draw from, for compositions and crystals.
        max_retries: Maximum number of retries of a crystal that violates its constraints, per composition.
    """
    settings: dict[str, Any] = dict(seed=seed, temperature=temperature, top_p=top_p, max_retries=max_retries)
    state = None
    if compositions:
        state = functools.partial(compositions, params, temperature=temperature, top_p=top_p)

    def draft(some: Mapping[int, SampleSpec]) -> dict[int, Mapping[str, int] | None]:
        requests = (
            _request(i, question, first=DRAFT, attempts=MAX_ATTEMPTS, **settings) for i, question in some.items()
        )
        found: dict[int, Mapping[str, int] | None] = {}
        with contextlib.closing(engine.run(params, requests)) as texts:
            for drawn in texts:
                index = drawn.request.index
                found[index] = Counter(symbols_of(some[index], drawn)) if drawn.complete else None
        return {index: found.get(index) for index in some}

    if state is None and questions.draws_formulas and len(indices) > _DRAFTS:
        for begin in range(0, len(indices), _DRAFTS):
            some = indices[begin : begin + _DRAFTS]
            yield from draw_samples(engine, params, questions, compositions, some, symbols_of=symbols_of, **settings)
        return
    rounds = _COMPOSITIONS if state and max_retries and temperature > 0 else 1
    attempts, begun = dict.fromkeys(indices, 0), dict.fromkeys(indices, 0)  # of the earlier rounds
    rejected = dict.fromkeys(indices, 0)
    for left in reversed(range(rounds)):
        asked: dict[int, SampleSpec] = {}
        numbered = questions(sorted(attempts), state, draft=draft, first=attempts)
        if state is None and questions.draws_formulas:
            numbered = iter(list(numbered))  # one run of the engine at a time: two would need twice the memory
        requests = _requests(numbered, asked, begun, attempts=0 if left else MAX_ATTEMPTS, **settings)
        attempts = {}
        with contextlib.closing(engine.run(params, requests)) as texts:
            for drawn in texts:
                index = drawn.request.index
                question = asked.pop(index)
                begun[index] += drawn.num_restarts
                rejected[index] += question.rejected
                if drawn.complete or not left:
                    yield SampleResult(question, drawn, rejected[index] + begun[index])
                else:
                    attempts[index] = question.next_attempt
                    rejected[index] += 1
        for index, question in asked.items():  # no composition was admitted
            nothing = Completion(
                request=GenerationRequest(index=index, prompt=()),
                ids=(),
                log_probs=(),
                log_allowed_mass=0.0,
                complete=False,
            )
            yield SampleResult(question, nothing, rejected[index] + question.rejected + begun[index] + 1)


def _requests(
    numbered: Iterable[tuple[int, SampleSpec]],
    asked: dict[int, SampleSpec],
    begun: Mapping[int, int],
    *,
    attempts: int,
    **settings: Any,
) -> Iterator[GenerationRequest]:
    """Yields the request of each sample with an admitted composition; records all specifications in `asked`."""
    for index, question in numbered:
        asked[index] = question
        if question.stated is None or question.stated.admitted:
            yield _request(index, question, first=begun[index], attempts=attempts, **settings)


def _request(index: int, question: SampleSpec, *, first: int, attempts: int, **settings: Any) -> GenerationRequest:
    return GenerationRequest(
        index=index,
        prompt=question.head,
        limits=question.limits,
        guide=question.guide,
        first=first,
        attempts=attempts,
        **settings,
    )
