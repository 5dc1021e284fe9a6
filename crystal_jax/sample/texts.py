"""What is asked of a text that is to be written, and what came of it."""

from __future__ import annotations

import dataclasses

from crystal_jax.sample.constraints import Limits, make_limits
from crystal_jax.sample.guide import Guide

ATTEMPTS = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """One text to be written.

    Attributes:
        index: Its number; with `seed` it decides the random numbers, so no two of one seed are alike.
        prompt: Token ids, BOS included.
        seed: Of a whole job.
        temperature: Logits are divided by it; 0 takes the most likely token.
        top_p: Draw from the smallest set of tokens that holds this share of probability.
        limits: Of the composition, from `make_limits`.
        guide: Further rules, asked once or twice an atom.
        first: Number of its first attempt, which like `index` decides the random numbers.
        attempts: How often the text is begun, redraws aside, before it is given up: a guide may come to a field that
            nothing may fill.
        redraws: How often it is begun again because it would not have kept to its limits, or to the order of its sites,
            by itself. After that it is made to keep to its limits.
    """

    index: int
    prompt: tuple[int, ...]
    seed: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    limits: Limits = dataclasses.field(default_factory=make_limits)
    guide: Guide | None = None
    first: int = 0
    attempts: int = ATTEMPTS
    redraws: int = 0

    def __post_init__(self):
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be 0 or more, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, not {self.top_p}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawn:
    """A finished text.

    Attributes:
        request: What was asked for.
        ids: Token ids, EOS left out.
        log_probs: Of its tokens, EOS included, and
        log_kept: see `Rows` in sample/decode.py.
        dead_ends: How often it was begun again: nothing was left that could follow, or it would not keep to its rules.
        complete: Whether it was written to its end; if not, all attempts came to a dead end, and this is the last.
    """

    request: Request
    ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    log_kept: float
    dead_ends: int = 0
    complete: bool = True

    @property
    def log_prob(self) -> float:
        """Of the whole text."""
        return sum(self.log_probs)
