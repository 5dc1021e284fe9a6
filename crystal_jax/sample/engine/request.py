"""Generation requests and completions."""

from __future__ import annotations

import dataclasses

from crystal_jax.sample.constraints.guide import Guide
from crystal_jax.sample.constraints.masks import CompositionLimits, make_limits

MAX_ATTEMPTS = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """A request for one sequence.

    Attributes:
        index: Number of the sample; with `seed` it decides the random numbers, so each sample of a seed has its own.
        prompt: Token ids, BOS included.
        seed: Random seed of the whole run.
        temperature: Logits are divided by it; 0 takes the most likely token.
        top_p: Draw from the smallest set of tokens that holds this share of the probability.
        limits: Limits on the composition, from `make_limits`.
        guide: Constraint that the host evaluates, once or twice per atom.
        first: Number of the first attempt; like `index`, the number of an attempt decides its random numbers.
        attempts: Attempts beyond `max_retries` before the request is given up; an attempt fails where the constraints
            leave no allowed token.
        max_retries: Attempts in which a violation of limits, guide or site order rejects the sequence. In later
            attempts masks enforce limits and guide; the site order is not enforced.

    Raises:
        ValueError: the temperature is negative or not finite, or top_p is not in (0, 1].
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

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be 0 or more, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, not {self.top_p}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Completion:
    """The result of a generation request.

    Attributes:
        request: The request.
        ids: Token ids, without EOS.
        log_probs: Log-probability of each token, EOS included; see `DecodeState` in sample/engine/decode_step.py.
        log_allowed_mass: See `DecodeState` in sample/engine/decode_step.py.
        num_restarts: Failed attempts: the sequence was rejected, or no token was allowed.
        complete: Whether the sequence reached its end; if not, all attempts failed, and this is the last one.
    """

    request: GenerationRequest
    ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    log_allowed_mass: float
    num_restarts: int = 0
    complete: bool = True

    @property
    def log_prob(self) -> float:
        """Returns the log-probability of the whole sequence, EOS included."""
        return sum(self.log_probs)
