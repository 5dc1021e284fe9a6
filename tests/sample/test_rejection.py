"""The distribution that rejection gives, compared with enumeration for a toy model."""

import itertools
from collections import Counter
from typing import NamedTuple

import numpy as np
import pytest

from crystal_jax.sample import rejection
from crystal_jax.sample.constraints.masks import CompositionLimits, make_limits
from crystal_jax.sample.engine.request import Completion

# The toy writes one of three compositions, then one of three crystals of it; some pairs violate a constraint.
COMPOSITIONS = {"A": 0.5, "B": 0.3, "C": 0.2}
CRYSTALS = {"x": 0.6, "y": 0.3, "z": 0.1}
SEED, NUMBER = 0, 12_000
LIMITS = make_limits()


class Line(NamedTuple):
    """A composition line of the toy."""

    name: str
    admitted: bool
    next_attempt: int
    rejected: int = 0
    ids: tuple[int, ...] = ()


class Spec(NamedTuple):
    """A specification of the toy: its composition is drawn."""

    stated: Line
    rejected: int = 0
    limits: CompositionLimits = LIMITS
    guide: None = None

    @property
    def head(self):
        return (ord(self.stated.name),)

    @property
    def next_attempt(self):
        return self.stated.next_attempt


class Specs:
    """The compositions of the toy: each attempt draws another one, independent of all others."""

    draws_formulas = False

    def __call__(self, indices, state, *, draft, first):
        for index in indices:
            rng = np.random.default_rng([SEED, 1, index, first[index]])
            yield (
                index,
                Spec(Line(str(rng.choice(list(COMPOSITIONS), p=list(COMPOSITIONS.values()))), True, first[index] + 1)),
            )


class Engine:
    """The toy's engine: crystals that violate a constraint are rejected, and retried as a real one does."""

    def __init__(self, allowed):
        self.allowed = allowed

    def run(self, params, requests):
        for request in requests:
            composition = chr(request.prompt[0])
            for attempt in range(request.max_retries + request.attempts):
                rng = np.random.default_rng([SEED, 2, request.index, request.first + attempt])
                strict = attempt < request.max_retries
                shares = {c: p for c, p in CRYSTALS.items() if strict or (composition, c) in self.allowed}
                if not shares:
                    continue
                crystal = str(rng.choice(list(shares), p=np.array(list(shares.values())) / sum(shares.values())))
                if (composition, crystal) in self.allowed:
                    yield Completion(
                        request=request, ids=(ord(crystal),), log_probs=(), log_allowed_mass=0.0, num_restarts=attempt
                    )
                    break
            else:
                attempts = request.max_retries + request.attempts
                yield Completion(
                    request=request, ids=(), log_probs=(), log_allowed_mass=0.0, num_restarts=attempts, complete=False
                )


def results_of(allowed, indices, *, compositions, max_retries):
    sampler = rejection.RejectionSampler(
        Engine(allowed), None, Specs(), compositions, symbols_of=lambda spec, completion: ()
    )
    settings = rejection.SamplingSettings(seed=SEED, temperature=1.0, top_p=1.0, max_retries=max_retries)
    return sampler.draw(indices, settings)


def drawn(allowed, *, max_retries, number=NUMBER):
    """How often each pair of composition and crystal came out."""
    results = results_of(allowed, range(number), compositions=lambda *_, **__: None, max_retries=max_retries)
    found = [(r.spec.stated.name, chr(r.drawn.ids[0]) if r.drawn.complete else None) for r in results]
    assert len(found) == number
    return Counter(found)


def conditional(allowed):
    """The exact distribution among the allowed pairs, by enumeration."""
    pairs = {(a, c): COMPOSITIONS[a] * CRYSTALS[c] for a, c in itertools.product(COMPOSITIONS, CRYSTALS)}
    total = sum(share for pair, share in pairs.items() if pair in allowed)
    return {pair: share / total for pair, share in pairs.items() if pair in allowed}


@pytest.mark.parametrize(
    "allowed",
    [
        {(a, c) for a in "ABC" for c in "xyz"},
        {("A", "y"), ("A", "z"), ("B", "x"), ("B", "y"), ("C", "x"), ("C", "z")},
    ],
    ids=["anything", "some"],
)
def test_with_retries_crystals_of_a_composition_have_their_conditional_distribution(allowed):
    """Retries keep the composition, so its share is the model's; within it, the shares are the conditional ones."""
    found = drawn(allowed, max_retries=50)
    assert set(found) == set(allowed)
    for composition in "ABC":
        own = {c: CRYSTALS[c] for a, c in allowed if a == composition}
        number = sum(found[composition, c] for c in own)
        assert number / NUMBER == pytest.approx(COMPOSITIONS[composition], abs=0.02)
        for crystal, share in own.items():
            assert found[composition, crystal] / number == pytest.approx(share / sum(own.values()), abs=0.03)


def test_a_composition_without_allowed_crystals_is_replaced_by_another():
    """No crystal of A is allowed: after its retries another composition is drawn, up to three times."""
    allowed = {(a, c) for a in "BC" for c in "xyz"}
    found = drawn(allowed, max_retries=3)
    lost = sum(count for (a, c), count in found.items() if c is None)
    # Four compositions are drawn at most; all of them are A with probability 0.5⁴.
    assert lost / NUMBER == pytest.approx(0.5**4, abs=0.01)
    kept = {pair: count for pair, count in found.items() if pair[1]}
    expected = conditional(allowed)
    for pair, share in expected.items():
        assert kept[pair] / sum(kept.values()) == pytest.approx(share, abs=0.02)


def test_without_retries_masks_change_the_distribution():
    """The first attempt is masked: a forbidden crystal's share goes to the others of its composition."""
    allowed = {("A", "z"), *((a, c) for a in "BC" for c in "xyz")}
    found = drawn(allowed, max_retries=0)
    assert found["A", "z"] / NUMBER == pytest.approx(COMPOSITIONS["A"], abs=0.02)
    assert conditional(allowed)["A", "z"] < 0.1


def test_every_sample_counts_its_restarts():
    allowed = {(a, "z") for a in "ABC"}
    results = list(results_of(allowed, range(2000), compositions=None, max_retries=1000))
    # Geometric with a success of 0.1: nine rejections on average.
    assert np.mean([result.num_restarts for result in results]) == pytest.approx(9, abs=0.6)
    assert sorted(result.drawn.request.index for result in results) == list(range(2000))
