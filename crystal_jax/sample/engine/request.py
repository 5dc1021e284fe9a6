"""What is asked of a text that is to be written, and what came of it."""

from __future__ import annotations

import dataclasses

from crystal_jax.sample.constraints.guide import Guide
from crystal_jax.sample.constraints.masks import CompositionLimits, make_limits

MAX_ATTEMPTS = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationRequest:
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
        attempts: How often the text is begun, max_retries aside, before it is given up: a guide may come to a field that
            nothing may fill.
        max_retries: How often it is begun again because it would not have kept to its limits, or to the order of its sites,
            by itself. After that it is made to keep to its limits.
    """

    index: int
    prompt: tuple[int, ...]
    seed: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    limits: CompositionLimits = dataclasses.field(default_factory=make_limits)
    guide: Guide | None = None
    first: int = 0
    attempts: int = MAX_ATTEMPTS
    max_retries: int = 0

    def __post_init__(self):
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be 0 or more, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, not {self.top_p}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Completion:
    """A finished text.

    Attributes:
        request: What was asked for.
        ids: Token ids, EOS left out.
        log_probs: Of its tokens, EOS included, and
        log_allowed_mass: see `DecodeState` in sample/engine/decode_step.py.
        num_restarts: How often it was begun again: nothing was left that could follow, or it would not keep to its rules.
        complete: Whether it was written to its end; if not, all attempts came to a dead end, and this is the last.
    """

    request: GenerationRequest
    ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    log_allowed_mass: float
    num_restarts: int = 0
    complete: bool = True

    @property
    def log_prob(self) -> float:
        """Of the whole text."""
        return sum(self.log_probs)
