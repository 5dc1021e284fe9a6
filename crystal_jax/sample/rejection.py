"""Draws the samples of a run by rejection: they follow the model's distribution conditioned on the constraints.

A composition is drawn, then a crystal of that composition. A sequence that violates its constraints is rejected and
retried, up to `max_retries` times; then another composition is drawn. If this fails too, masks enforce the constraints.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import NamedTuple

from crystal_jax.model.parameters import Params
from crystal_jax.sample.composition import CompositionSampler
from crystal_jax.sample.engine.engine import Engine
from crystal_jax.sample.engine.request import MAX_ATTEMPTS, Completion, GenerationRequest
from crystal_jax.sample.sample_spec import DRAFT, SampleSpec, SampleSpecBuilder, StateLines

_COMPOSITIONS = 4  # compositions tried per sample, at most; for the last one, masks enforce the constraints in the end
_DRAFTS = 256  # crystals that are drawn for their formulas in one batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """The settings that decide a sample, besides its specification and number.

    Attributes:
        seed: Random seed of the run.
        temperature: Temperature for compositions and crystals.
        top_p: Share of the probability to draw from, for compositions and crystals.
        max_retries: Maximum number of retries of a crystal that violates its constraints, per composition.
    """

    seed: int
    temperature: float
    top_p: float
    max_retries: int


class SampleResult(NamedTuple):
    """The result of one sample.

    Attributes:
        spec: Specification of the sample, with the composition line that was drawn last.
        drawn: The completion.
        num_restarts: Number of rejected compositions and crystals.
    """

    spec: SampleSpec
    drawn: Completion
    num_restarts: int


@dataclasses.dataclass
class _Progress:
    """What the earlier rounds did for the samples that are not finished, by their numbers.

    Attributes:
        attempts: Attempts made at the composition; its keys are the samples that the next round draws.
        restarts: Retries of crystals.
        rejected: Rejected compositions.
    """

    attempts: dict[int, int]
    restarts: dict[int, int]
    rejected: dict[int, int]

    @classmethod
    def of(cls, indices: Sequence[int]) -> _Progress:
        return cls(*(dict.fromkeys(indices, 0) for _ in range(3)))


class RejectionSampler:
    """Draws samples with one model and one set of specifications.

    Args:
        engine: Decodes the crystals.
        params: Parameters of the model.
        specs: Builds the specification of each sample.
        compositions: Draws composition lines, if the text format has them.
        symbols_of: Returns the element of each site of a complete sequence.
    """

    def __init__(
        self,
        engine: Engine,
        params: Params,
        specs: SampleSpecBuilder,
        compositions: CompositionSampler | None,
        *,
        symbols_of: Callable[[SampleSpec, Completion], Sequence[str]],
    ):
        self._engine, self._params, self._specs, self._compositions = engine, params, specs, compositions
        self._symbols_of = symbols_of

    def draw(self, indices: Sequence[int], settings: SamplingSettings) -> Generator[SampleResult, None, None]:
        """Yields the result of each sample as soon as it is finished, in no particular order.

        Args:
            indices: Numbers of the samples. A sample depends only on its own number and on the settings.
            settings: Seed, temperature, top_p and number of retries.
        """
        drafts = self._compositions is None and self._specs.draws_formulas
        size = _DRAFTS if drafts else max(len(indices), 1)
        for begin in range(0, len(indices), size):
            yield from self._draw(indices[begin : begin + size], settings)

    def _draw(self, indices: Sequence[int], settings: SamplingSettings) -> Generator[SampleResult, None, None]:
        state = None
        if self._compositions:
            state = functools.partial(
                self._compositions, self._params, temperature=settings.temperature, top_p=settings.top_p
            )
        rounds = _COMPOSITIONS if state and settings.max_retries and settings.temperature > 0 else 1
        progress = _Progress.of(indices)
        for left in reversed(range(rounds)):
            if progress.attempts:
                yield from self._round(progress, settings, state, last=not left)

    def _round(
        self, progress: _Progress, settings: SamplingSettings, state: StateLines | None, *, last: bool
    ) -> Generator[SampleResult, None, None]:
        """Draws a composition and crystals of it for each sample in `progress`, and yields what is finished.

        In the last round, masks enforce the constraints in the end, so that every sample is finished.
        """
        draft = functools.partial(self._draft, settings)
        numbered = self._specs(sorted(progress.attempts), state, draft=draft, first=progress.attempts)
        if state is None and self._specs.draws_formulas:
            numbered = iter(list(numbered))  # one run of the engine at a time: two would need twice the memory
        asked: dict[int, SampleSpec] = {}
        attempts = MAX_ATTEMPTS if last else 0

        def requests() -> Generator[GenerationRequest, None, None]:
            for index, spec in numbered:
                asked[index] = spec
                if spec.stated is None or spec.stated.admitted:
                    yield _request(index, spec, settings, first=progress.restarts[index], attempts=attempts)

        again: dict[int, int] = {}
        with contextlib.closing(self._engine.run(self._params, requests())) as texts:
            for drawn in texts:
                index = drawn.request.index
                spec = asked.pop(index)
                progress.restarts[index] += drawn.num_restarts
                progress.rejected[index] += spec.rejected
                if drawn.complete or last:
                    yield SampleResult(spec, drawn, progress.rejected[index] + progress.restarts[index])
                else:
                    again[index] = spec.next_attempt
                    progress.rejected[index] += 1
        for index, spec in asked.items():  # no composition was admitted
            restarts = progress.rejected[index] + spec.rejected + progress.restarts[index] + 1
            yield SampleResult(spec, _nothing(index), restarts)
        progress.attempts = again

    def _draft(self, settings: SamplingSettings, some: Mapping[int, SampleSpec]) -> dict[int, Mapping[str, int] | None]:
        """Returns compositions of crystals that are drawn for their formulas; None where none was completed."""
        requests = (_request(i, spec, settings, first=DRAFT, attempts=MAX_ATTEMPTS) for i, spec in some.items())
        found: dict[int, Mapping[str, int] | None] = {}
        with contextlib.closing(self._engine.run(self._params, requests)) as texts:
            for drawn in texts:
                index = drawn.request.index
                found[index] = Counter(self._symbols_of(some[index], drawn)) if drawn.complete else None
        return {index: found.get(index) for index in some}


def _request(
    index: int, spec: SampleSpec, settings: SamplingSettings, *, first: int, attempts: int
) -> GenerationRequest:
    return GenerationRequest(
        index=index,
        prompt=spec.head,
        limits=spec.limits,
        guide=spec.guide,
        first=first,
        attempts=attempts,
        seed=settings.seed,
        temperature=settings.temperature,
        top_p=settings.top_p,
        max_retries=settings.max_retries,
    )


def _nothing(index: int) -> Completion:
    """Returns the completion of a sample without an admitted composition."""
    request = GenerationRequest(index=index, prompt=())
    return Completion(request=request, ids=(), log_probs=(), log_allowed_mass=0.0, complete=False)
