"""Draws the composition line of a sequence before its sites, which are then constrained to that composition.

Without constraints, the lines follow the model's distribution. With constraints, each token is drawn under a mask,
which alone would distort the distribution: a model that may write only Li, Fe, P and O would mostly stop after lithium,
since ending the line is the one continuation that keeps all of its probability. So several lines are proposed, and one
is chosen by its importance weight: the probability mass that the masks left (sampling-importance-resampling, Rubin
1988). With more proposals, the result approaches the model's distribution restricted to the constraints.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from jax.sharding import Mesh

from crystal_jax.config import ModelConfig
from crystal_jax.model.parameters import ModelGraph, Params
from crystal_jax.sample.composition_programs import STREAM, CompositionPrograms, DrawSettings
from crystal_jax.sharding import row_parts
from crystal_jax.text.grammar.composition import CompositionGrammar, ParserState
from crystal_jax.text.grammar.composition_constraint import CompositionConstraint, Parts

_ATTEMPTS = 1000  # per composition, until one is admitted
# Proposals per chosen line, under constraints. If the prompt states the formula, only its multiple is open.
_PROPOSALS, _FORMULA_PROPOSALS = 16, 4
Admit = Callable[[Mapping[str, int]], bool]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompositionRequest:
    """A request for one composition line.

    Attributes:
        index: Number of the sample.
        prompt: Token ids, BOS included.
        wanted: Constraint on the composition, enforced by masks.
        admit: Further test of a whole composition; compositions that fail it are drawn again.
        first: Number of the first attempt; like `index`, the number of an attempt decides its random numbers.
    """

    index: int
    prompt: tuple[int, ...]
    wanted: CompositionConstraint
    admit: Admit = lambda composition: True
    first: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompositionDraw:
    """A composition line.

    Attributes:
        composition: The composition that the line states.
        ids: Token ids of the line.
        log_probs: Log-probability of each token and of the line's end, which is not in `ids`; see `DecodeState` in
            sample/engine/decode_step.py.
        log_allowed_mass: Natural logarithm of the probability mass that `CompositionRequest.wanted` leaves, summed over
            the tokens.
        next_attempt: Number of the first attempt that is still unused.
        rejected: Number of attempts that were not admitted.
        admitted: Whether the composition is admitted; if not, none of 1,000 attempts was, and this is the last one.
        weight: Logarithm of the importance weight: as `log_allowed_mass`, at the sampling temperature.
    """

    composition: Parts
    ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    log_allowed_mass: float
    next_attempt: int = 1
    rejected: int = 0
    admitted: bool = True
    weight: float = 0.0


# The result for a sample for which no composition was found.
NOTHING = CompositionDraw(composition=(), ids=(), log_probs=(0.0,), log_allowed_mass=0.0, admitted=False)


@dataclasses.dataclass
class _Row:
    """A composition line in the batch."""

    place: ParserState = dataclasses.field(default_factory=ParserState)
    ids: list[int] = dataclasses.field(default_factory=list)
    log_probs: list[float] = dataclasses.field(default_factory=list)
    log_allowed_mass: float = 0.0
    weight: float = 0.0
    stated: CompositionDraw | None = None
    stuck: bool = False


class CompositionSampler:
    """Draws the composition line of sample i, which depends on the seed and on i alone.

    Args:
        graph: Graph definition of the model.
        cfg: Configuration of the model.
        language: Grammar of composition lines.
        mesh: Device mesh that holds the parameters.
        prompt_tokens: Length of the longest prompt, BOS included.
        seed: Random seed of the run.
        at_once: Lines decoded side by side; no influence on the lines.
    """

    def __init__(
        self,
        graph: ModelGraph,
        cfg: ModelConfig,
        language: CompositionGrammar,
        mesh: Mesh,
        *,
        prompt_tokens: int,
        seed: int,
        at_once: int = 64,
    ):
        self._language, self._seed = language, seed
        at_once += -at_once % row_parts(mesh)
        self._prompt_tokens, self._at_once = prompt_tokens, at_once
        programs = CompositionPrograms(
            graph=graph,
            cfg=cfg,
            mesh=mesh,
            columns=language.token_ids,
            ends=language.ends,
            rows=at_once,
            capacity=prompt_tokens + language.max_tokens,
        )
        self._read, self._step = programs.compiled()

    def __call__(
        self, params: Params, asked: Sequence[CompositionRequest], *, temperature: float, top_p: float
    ) -> Iterator[CompositionDraw]:
        """Yields the composition line of each request, in order.

        Args:
            params: Parameters of the model.
            asked: Requests.
            temperature: Logits are divided by it; 0 takes the most likely token.
            top_p: Draw from the smallest set of tokens that holds this share of the probability.
        """
        settings = DrawSettings(
            seed=np.uint32(self._seed),
            temperature=np.full(self._at_once, temperature, np.float32),
            top_p=np.full(self._at_once, top_p, np.float32),
        )
        for begin in range(0, len(asked), self._at_once):
            some = asked[begin : begin + self._at_once]
            # Number of proposals of which one is chosen.
            sizes = [self._num_proposals(one) if temperature else 1 for one in some]
            found: dict[int, CompositionDraw] = {}
            made = [0] * len(some)  # attempts
            most = _ATTEMPTS if temperature else 1  # at temperature 0 every attempt gives the same line
            while missing := [i for i in range(len(some)) if i not in found]:
                groups = max(1, self._at_once // sum(sizes[i] for i in missing))
                tries = [
                    (i, made[i] + number) for i in missing for number in range(min(groups * sizes[i], most - made[i]))
                ]
                rows: list[_Row] = []
                for first in range(0, len(tries), self._at_once):
                    batch = tries[first : first + self._at_once]
                    rows += self._write(params, [(some[i], some[i].first + number) for i, number in batch], settings)
                proposed: dict[int, list[CompositionDraw]] = {i: [] for i in missing}
                for (i, _), row in zip(tries, rows, strict=True):
                    stated = row.stated or NOTHING
                    admitted = row.stated is not None and some[i].admit(dict(stated.composition))
                    proposed[i].append(dataclasses.replace(stated, admitted=admitted, weight=row.weight))
                for i, lines in proposed.items():
                    if chosen := self._choose(some[i], made[i], lines, sizes[i], most=most):
                        found[i] = chosen
                    made[i] += len(lines)
            yield from (found[i] for i in range(len(some)))

    def _num_proposals(self, one: CompositionRequest) -> int:
        if one.wanted == self._language.anything:  # the constraint masks nothing
            return 1
        return _FORMULA_PROPOSALS if one.wanted.formula else _PROPOSALS

    def _choose(
        self, one: CompositionRequest, made: int, lines: Sequence[CompositionDraw], size: int, *, most: int
    ) -> CompositionDraw | None:
        """Chooses a line of the first group with an admitted one; returns the last line if attempts run out, else None.

        Args:
            one: The request.
            made: Number of attempts before these lines.
            lines: The proposals, in whole groups.
            size: Lines per group.
            most: Maximum number of attempts.
        """
        for begin in range(0, len(lines), size):
            group = lines[begin : begin + size]
            admitted = [line for line in group if line.admitted]
            first = one.first + made + begin
            rejected = made + begin + len(group) - len(admitted)
            if admitted:
                weights = np.exp(np.array([line.weight for line in admitted]) - max(line.weight for line in admitted))
                rng = np.random.default_rng([self._seed, STREAM, one.index, first])
                place = int(rng.choice(len(admitted), p=weights / weights.sum())) if len(admitted) > 1 else 0
                return dataclasses.replace(admitted[place], next_attempt=first + len(group), rejected=rejected)
        if made + len(lines) >= most:
            rejected = made + len(lines) - 1
            return dataclasses.replace(lines[-1], next_attempt=one.first + rejected + 1, rejected=rejected)
        return None

    def _write(
        self, params: Params, tries: Sequence[tuple[CompositionRequest, int]], settings: DrawSettings
    ) -> list[_Row]:
        """Decodes one line for each request and number of its attempt."""
        language = self._language
        # Padded to the compiled batch size.
        tokens = np.zeros((self._at_once, self._prompt_tokens), np.int32)
        count = np.ones(self._at_once, np.int32)
        numbers = np.zeros((self._at_once, 3), np.int32)
        for i, (one, attempt) in enumerate(tries):
            tokens[i, : len(one.prompt)], count[i] = one.prompt, len(one.prompt)
            numbers[i, :2] = one.index, attempt
        past = self._read(params, tokens, count)
        rows = [_Row() for _ in tries]
        for number in range(language.max_tokens + 1):
            going = [i for i, row in enumerate(rows) if not row.stated and not row.stuck]
            if not going:
                break
            masks = np.zeros((2, self._at_once, language.end + 1), bool)
            masks[:, :, language.end] = True  # for rows that are finished: some column must be allowed
            masks[:, going] = False
            for i in going:
                masks[0, i] = language.open(rows[i].place, language.anything)
                masks[1, i] = language.open(rows[i].place, tries[i][0].wanted)
                rows[i].stuck = not masks[1, i].any()
                masks[:, i, language.end] |= rows[i].stuck
            numbers[:, 2] = number
            past, drawn = self._step(params, past, masks, numbers, settings)
            columns, log_probs, kept, weights = (np.asarray(array).tolist() for array in drawn)
            for i in going:
                if not rows[i].stuck:
                    self._note(rows[i], columns[i], log_probs[i], kept[i], weights[i])
        return rows

    def _note(self, row: _Row, column: int, log_prob: float, kept: float, weight: float) -> None:
        """Adds the drawn column to a line."""
        row.log_probs.append(log_prob)
        row.log_allowed_mass += kept
        row.weight += weight
        if column != self._language.end:
            row.ids.append(int(self._language.token_ids[column]))
            row.place = self._language.step(row.place, column)
            return
        row.stated = CompositionDraw(
            composition=self._language.composition(row.place),
            ids=tuple(row.ids),
            log_probs=tuple(row.log_probs),
            log_allowed_mass=row.log_allowed_mass,
        )
