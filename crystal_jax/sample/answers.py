"""The answers to a job's questions.

A composition is stated, then a crystal of it is written. A text that does not keep to its rules by itself is begun
again, some times; then another composition is stated. Only what comes to nothing so, too, is made to keep to them.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from flax import nnx

from crystal_jax.sample.compositions import Compositions
from crystal_jax.sample.questions import Question, Questions
from crystal_jax.sample.scheduler import Engine
from crystal_jax.sample.texts import ATTEMPTS, Drawn, Request

_COMPOSITIONS = 4  # that are tried, at most; the last one is kept to


class Answer(NamedTuple):
    """Of one sample.

    Attributes:
        question: What was asked, with the composition that was stated last.
        drawn: What was written.
        dead_ends: How often a composition or a crystal was begun in vain.
    """

    question: Question
    drawn: Drawn
    dead_ends: int


def answers(
    engine: Engine,
    params: nnx.State,
    questions: Questions,
    compositions: Compositions | None,
    indices: Sequence[int],
    *,
    seed: int,
    temperature: float,
    top_p: float,
    redraws: int,
) -> Generator[Answer, None, None]:
    """Yields the answers of these samples as they are finished, in no particular order.

    Args:
        engine: Writes the crystals.
        params: The model's.
        questions: What is asked of each.
        compositions: Draws first lines, if the texts have them.
        indices: Numbers of the samples. A sample depends on its own and on the settings below alone.
        seed: Of the job.
        temperature: Of compositions and crystals.
        top_p: Likewise.
        redraws: How often a crystal is begun again that does not keep to its rules by itself.
    """
    state = None
    if compositions:
        state = functools.partial(compositions, params, temperature=temperature, top_p=top_p)
    rounds = _COMPOSITIONS if state and redraws and temperature > 0 else 1
    settings = dict(seed=seed, temperature=temperature, top_p=top_p, redraws=redraws)
    stated, begun = dict.fromkeys(indices, 0), dict.fromkeys(indices, 0)  # how often, before this round
    for left in reversed(range(rounds)):
        asked: dict[int, Question] = {}
        numbered = questions(sorted(stated), state, first=stated)
        requests = _requests(numbered, asked, begun, attempts=0 if left else ATTEMPTS, **settings)
        stated = {}
        with contextlib.closing(engine.run(params, requests)) as texts:
            for drawn in texts:
                index = drawn.request.index
                question = asked.pop(index)
                begun[index] += drawn.dead_ends
                if drawn.complete or not left:
                    yield Answer(question, drawn, question.rejected + begun[index])
                else:
                    stated[index] = question.rejected + 1
        for index, question in asked.items():
            nothing = Drawn(request=Request(index=index, prompt=()), ids=(), log_probs=(), log_kept=0.0, complete=False)
            yield Answer(question, nothing, question.rejected + begun[index] + 1)


def _requests(
    numbered: Iterable[tuple[int, Question]],
    asked: dict[int, Question],
    begun: Mapping[int, int],
    *,
    attempts: int,
    **settings: Any,
) -> Iterator[Request]:
    """What is asked of the engine, noted in `asked`; nothing where no composition is admitted."""
    for index, question in numbered:
        asked[index] = question
        if question.stated is None or question.stated.admitted:
            yield Request(
                index=index,
                prompt=question.head,
                limits=question.limits,
                guide=question.guide,
                first=begun[index],
                attempts=attempts,
                **settings,
            )
