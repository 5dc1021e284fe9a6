"""Draws the samples of a job by rejection: each follows the model's distribution among texts that keep its rules.

A composition is drawn, then a crystal of it. A text that violates its rules is rejected and drawn again, up to
`max_retries` times; then another composition is drawn. Only if that fails, too, are the rules enforced by masks.
"""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from flax import nnx

from crystal_jax.sample.composition import CompositionSampler
from crystal_jax.sample.engine.request import MAX_ATTEMPTS, Completion, GenerationRequest
from crystal_jax.sample.engine.scheduler import Engine
from crystal_jax.sample.sample_spec import DRAFT, SampleSpec, SampleSpecBuilder

_COMPOSITIONS = 4  # that are tried, at most; the last one is kept to
_DRAFTS = 256  # crystals that are drawn for their formulas before those that are asked for


class SampleResult(NamedTuple):
    """One sample.

    Attributes:
        question: What was asked, with the composition that was stated last.
        drawn: What was written.
        num_restarts: How often a composition or a crystal was rejected.
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
    """Yields the answers of these samples as they are finished, in no particular order.

    Args:
        engine: Writes the crystals.
        params: The model's.
        questions: What is asked of each.
        compositions: Draws composition lines, if the texts have them.
        indices: Numbers of the samples. A sample depends on its own and on the settings below alone.
        symbols_of: Returns the element of each site of a finished text.
        seed: Of the job.
        temperature: Of compositions and crystals.
        top_p: Likewise.
        max_retries: How often a crystal that violates its rules is drawn again.
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
    attempts, begun = dict.fromkeys(indices, 0), dict.fromkeys(indices, 0)  # before this round
    rejected = dict.fromkeys(indices, 0)
    for left in reversed(range(rounds)):
        asked: dict[int, SampleSpec] = {}
        numbered = questions(sorted(attempts), state, draft=draft, first=attempts)
        if state is None and questions.draws_formulas:
            numbered = iter(list(numbered))  # one engine at a time: two would need twice the memory
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
        for index, question in asked.items():  # no composition is admitted
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
    """What is asked of the engine, noted in `asked`; nothing where no composition is admitted."""
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
