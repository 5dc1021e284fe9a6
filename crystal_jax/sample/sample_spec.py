"""Specifications of samples: the prompt of each sample, and the constraints that it must satisfy.

A model learns properties after a formula: the formula always comes first in a prompt (Gruver et al., section 3). It was
never trained on a prompt with a property alone, and then mostly writes pure elements. So if a request has properties
without a formula, a formula is drawn first, by the model itself from the prompt without conditions, under the limits on
the composition. Then the prompt states formula and properties together. The formulas of such samples therefore follow
the model's unconditional distribution, restricted to the limits.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from jax.sharding import Mesh
from pymatgen.core import Composition

from crystal_jax.config import ModelConfig
from crystal_jax.errors import RequestError
from crystal_jax.evaluate.chemistry.validity import MAX_VOLUME_FACTOR
from crystal_jax.model.parameters import ModelGraph
from crystal_jax.sample.composition import NOTHING, Admit, CompositionDraw, CompositionRequest, CompositionSampler
from crystal_jax.sample.constraints.guide import Guide, Guides
from crystal_jax.sample.constraints.masks import CompositionLimits, exactly, limits_of, unlimited
from crystal_jax.sample.constraints.orbits import OrbitDistance
from crystal_jax.sample.constraints.rules import Rules, kept_formula, make_admission, make_guide, merged_with
from crystal_jax.sample.constraints.symmetry import SymmetryGuide
from crystal_jax.sample.engine.request import Completion
from crystal_jax.sample.requests import FORMULA, SPACEGROUP, Asked, conditions_of
from crystal_jax.symmetry.occupation import possible_spacegroups
from crystal_jax.text.crystal_text import TextFormat
from crystal_jax.text.grammar.automaton import TokenAutomaton
from crystal_jax.text.grammar.composition import CompositionGrammar
from crystal_jax.text.grammar.composition_constraint import CompositionConstraint
from crystal_jax.text.prompts import generation_prompt
from crystal_jax.text.tokenizer import Tokenizer, prompt_ids

_AT_ONCE = 256  # specifications whose compositions are drawn in one batch
# The number of an attempt decides its random numbers. Two kinds of draws must not repeat those of other attempts: the
# composition line of a sample whose formula was drawn before, and a crystal that is drawn only for its formula. There
# are at most 4,000 attempts at composition lines.
_SECOND_LINE = 1 << 16
DRAFT = 1 << 20
_USUAL_ATOMS = 20  # the largest cells of the training data: a smaller maximum is a limit, not another grammar
# About the longest formula of such a cell; it decides how many tokens prompts may have.
_LONG_FORMULA = "Li2Fe2Mn2Co2(Si2B2P2S2O2F2)10"


class SampleSpec(NamedTuple):
    """The specification of one sample.

    Attributes:
        asked: The user's request.
        rules: Constraints, as given by name.
        text, prompt: The prompt as text, and its ids with BOS.
        constraint: Constraint on the composition.
        limits, guide: Constraints on the tokens after the composition line, or after the prompt if there is no such
            line.
        admit: Further test of a whole composition.
        formula_is_drawn: The request has properties without a formula, so a formula is drawn first.
        stated: The composition line, which follows the prompt; None if it is not drawn yet, or the text format has
            none.
        draft: If the formula was drawn by a composition line, that line.
    """

    asked: Asked
    rules: Rules
    text: str
    prompt: tuple[int, ...]
    constraint: CompositionConstraint
    limits: CompositionLimits
    guide: Guide | None
    admit: Admit
    formula_is_drawn: bool = False
    stated: CompositionDraw | None = None
    draft: CompositionDraw | None = None

    @property
    def rejected(self) -> int:
        """Returns how many composition lines were drawn and not admitted."""
        return sum(line.rejected for line in (self.draft, self.stated) if line)

    @property
    def next_attempt(self) -> int:
        """Returns the number of the first unused attempt at a composition."""
        line = self.draft or self.stated
        return line.next_attempt if line else 0

    @property
    def head(self) -> tuple[int, ...]:
        """Returns the ids of the prompt and of the composition line: the engine decodes what follows them."""
        return self.prompt + (self.stated.ids if self.stated else ())

    def log_probs(self, drawn: Completion) -> tuple[list[float], float]:
        """Returns `log_probs` and `log_allowed_mass` of a whole completion, its composition line included."""
        if self.stated is None:
            return list(drawn.log_probs), drawn.log_allowed_mass
        # `end` is the total log-probability of the tokens that may follow the line; `first` is that of one of them,
        # given that.
        *line, end = self.stated.log_probs
        first, *others = drawn.log_probs or (0.0,)
        return [*line, end + first, *others], self.stated.log_allowed_mass + drawn.log_allowed_mass


# Draws composition lines, in order.
StateLines = Callable[[Sequence[CompositionRequest]], Iterator[CompositionDraw]]
# Draws crystals without conditions, under the limits of these specifications, and returns their compositions; None
# where no crystal was completed. For text formats without a composition line.
DraftCompositions = Callable[[Mapping[int, SampleSpec]], Mapping[int, Mapping[str, int] | None]]


class SampleSpecBuilder:
    """Builds the specification of each sample; sample i answers request i modulo the number of requests.

    Adding samples to a run therefore leaves the requests of earlier samples unchanged.

    Args:
        asked: Requests (see sample/requests.py).
        rules: Constraints of the whole run; a request may add to them.
        automaton: The grammar, without a composition line.
        tokenizer, text_format: Tokenizer and text format of the model. If the format has a composition line, it is
            drawn first, and the sites are constrained to it.

    Attributes:
        texts: The prompt of each request; if its formula is drawn, the prompt without the formula.
        constraints: Names of all constraints in use.
        prompt_tokens: Length of the longest prompt, BOS included.
        first_line: Grammar of composition lines; None if the text format has none.
        head_tokens: Length of the longest `SampleSpec.head`.

    Raises:
        RequestError: a condition is unknown or impossible, a constraint needs a condition that is not requested, or the
            tokenizer cannot express a prompt or the composition line.
    """

    def __init__(
        self,
        asked: Sequence[Asked],
        rules: Rules,
        automaton: TokenAutomaton,
        tokenizer: Tokenizer,
        text_format: TextFormat,
    ):
        self._tokenizer, self._automaton = tokenizer, automaton
        self._has_positions = text_format.version == "wyckoff"
        self._plain = prompt_ids(tokenizer, generation_prompt())
        has_line = text_format.layout.block is not None
        most = max(automaton.max_atoms, _USUAL_ATOMS)
        self.first_line = CompositionGrammar(tokenizer, text_format, max_atoms=most) if has_line else None
        self._admissions: dict[Rules, Admit] = {}
        self._specs: list[SampleSpec] = []
        for number, one in enumerate(asked, start=1):
            try:
                self._specs.append(self._spec(one, merged_with(rules, one)))
            except RequestError as error:
                raise RequestError(f"request {number}: {error}" if len(asked) > 1 else str(error)) from error
        self.texts = [spec.text for spec in self._specs]
        self.constraints = frozenset[str]().union(*(spec.rules.constraints for spec in self._specs))
        self.prompt_tokens = max(len(self._plain), *map(self._longest_prompt, self._specs))
        self.head_tokens = self.prompt_tokens + (self.first_line.max_tokens if self.first_line else 0)

    def __len__(self) -> int:
        """Returns the number of requests."""
        return len(self._specs)

    @property
    def has_one_head(self) -> bool:
        """Whether all samples have the same prompt."""
        return self.first_line is None and len(set(self.texts)) == 1 and not self.draws_formulas

    @property
    def draws_formulas(self) -> bool:
        """Whether some request has hints without a formula."""
        return any(spec.formula_is_drawn for spec in self._specs)

    def number_of(self, index: int) -> int:
        """Returns the number, from 0, of the request that sample `index` answers."""
        return index % len(self._specs)

    def _spec(self, asked: Asked, rules: Rules) -> SampleSpec:
        conditions = conditions_of(asked)
        formula = kept_formula(rules, conditions.get(FORMULA))
        constraint = rules.composition(formula)
        if rules not in self._admissions:  # shared, since it caches its results
            self._admissions[rules] = make_admission(rules, self._automaton)
        text = generation_prompt(conditions)
        return SampleSpec(
            asked=asked,
            rules=rules,
            text=text,
            prompt=prompt_ids(self._tokenizer, text),
            constraint=constraint,
            limits=limits_of(constraint),
            guide=self._guide(rules, asked, formula),
            admit=self._admission(rules, asked),
            formula_is_drawn=bool(conditions) and FORMULA not in conditions,
        )

    def _admission(self, rules: Rules, asked: Asked) -> Admit:
        """Returns the test of compositions; with the constraint `symmetry`, the space group must have places for them.

        Raises:
            RequestError: that constraint needs a space group that is not requested, or another text format.
        """
        admit = self._admissions[rules]
        if self._has_positions and "lattice" in rules.constraints:
            raise RequestError("texts by symmetry have their group's lattice: use the constraint 'symmetry'")
        if "symmetry" not in rules.constraints:
            return admit
        if not self._has_positions:
            raise RequestError("the constraint 'symmetry' needs a model whose texts state Wyckoff positions")
        if (group := asked.get(SPACEGROUP)) is None:
            raise RequestError("the constraint 'symmetry' needs a requested space group")

        def has_places(composition: Mapping[str, int]) -> bool:
            return admit(composition) and group in possible_spacegroups(tuple(sorted(composition.values())))

        return has_places

    def _guide(
        self, rules: Rules, asked: Asked, formula: str | None, composition: Mapping[str, int] | None = None
    ) -> Guide | None:
        if self._has_positions:  # its guide needs the composition: `_with_symmetry`
            return None
        return make_guide(
            rules,
            self._automaton,
            formula=formula,
            spacegroup=asked.get(SPACEGROUP),
            composition_first=self.first_line is not None,
            composition=composition,
        )

    def _longest_prompt(self, spec: SampleSpec) -> int:
        """Returns the maximum number of tokens of a prompt, with the formula that may be drawn for it."""
        if not spec.formula_is_drawn:
            return len(spec.prompt)
        return len(self._prompt_with(spec, _LONG_FORMULA)[1])

    def _prompt_with(self, spec: SampleSpec, formula: str) -> tuple[str, tuple[int, ...]]:
        """Returns the prompt that states a formula, and then the conditions of the request."""
        text = generation_prompt({FORMULA: formula, **conditions_of(spec.asked)})
        return text, prompt_ids(self._tokenizer, text)

    def make_compositions(
        self,
        graph: ModelGraph,
        cfg: ModelConfig,
        mesh: Mesh,
        *,
        seed: int,
        at_once: int = 64,
    ) -> CompositionSampler | None:
        """Returns the sampler of composition lines; None if the text format has none."""
        if self.first_line is None:
            return None
        most = self.prompt_tokens
        return CompositionSampler(graph, cfg, self.first_line, mesh, prompt_tokens=most, seed=seed, at_once=at_once)

    def __call__(
        self,
        indices: Sequence[int],
        state: StateLines | None = None,
        *,
        draft: DraftCompositions | None = None,
        first: Mapping[int, int] = MappingProxyType({}),
    ) -> Iterator[tuple[int, SampleSpec]]:
        """Yields the number and the specification of each sample, with its composition line if the text format has one.

        Args:
            indices: Numbers of the samples.
            state: Draws composition lines; needed if the text format has them.
            draft: Draws compositions if the text format has no such line; needed if a formula is drawn.
            first: Attempts already made at the composition of each sample; 0 by default.
        """
        for begin in range(0, len(indices), _AT_ONCE):
            some = {index: self._specs[self.number_of(index)] for index in indices[begin : begin + _AT_ONCE]}
            if state is None:
                yield from self._with_drafts(some, draft).items()
                continue
            for index, line in self._state(state, some, first, drafting=True):
                some[index] = self._with_formula(some[index], line)
            for index, line in self._state(state, some, first, drafting=False):
                counts = dict(line.composition)
                if self._has_positions:
                    some[index] = self._with_symmetry(some[index]._replace(stated=line), counts)
                    continue
                spec = some[index]._replace(limits=exactly(counts), stated=line)
                if line.admitted and "distance" in spec.rules.constraints:
                    guide = self._guide(spec.rules, spec.asked, None, counts)
                    spec = spec._replace(guide=guide)
                some[index] = spec
            yield from some.items()

    def _with_symmetry(self, spec: SampleSpec, counts: Mapping[str, int]) -> SampleSpec:
        """Returns the specification of a text by symmetry: its guide keeps to the composition."""
        group = spec.asked.get(SPACEGROUP) if "symmetry" in spec.rules.constraints else None
        guides: list[Guide] = [SymmetryGuide(self._automaton, counts, spacegroup=group)]
        if "distance" in spec.rules.constraints:
            rules = spec.rules
            largest = MAX_VOLUME_FACTOR if rules.min_radius_factor else math.inf
            limits = dict(shortest=rules.min_distance, radii=rules.min_radius_factor, max_volume_factor=largest)
            guides.append(OrbitDistance(self._automaton, counts, **limits))
        return spec._replace(limits=unlimited(), guide=Guides(guides))

    def _state(
        self, state: StateLines, some: Mapping[int, SampleSpec], first: Mapping[int, int], *, drafting: bool
    ) -> Iterator[tuple[int, CompositionDraw]]:
        """Draws composition lines: with `drafting`, those that supply formulas; else those that start the sequences."""
        if drafting:
            asked = {i: q for i, q in some.items() if q.formula_is_drawn}
        else:
            asked = {i: q for i, q in some.items() if q.stated is None}
        lines = [
            CompositionRequest(
                index=index,
                prompt=self._plain if drafting else spec.prompt,
                wanted=spec.constraint,
                admit=self._fitting(spec) if drafting else spec.admit,
                first=first.get(index, 0) if spec.draft is None else _SECOND_LINE * (1 + first.get(index, 0)),
            )
            for index, spec in asked.items()
        ]
        yield from zip(asked, state(lines), strict=True)

    def _fitting(self, spec: SampleSpec) -> Admit:
        """Returns the specification's test of compositions, extended to refuse formulas whose prompt is too long."""

        def admit(composition: Mapping[str, int]) -> bool:
            if not spec.admit(composition):
                return False
            return len(self._prompt_with(spec, _reduced(composition))[1]) <= self.prompt_tokens

        return admit

    def _with_formula(self, spec: SampleSpec, draft: CompositionDraw) -> SampleSpec:
        """Returns the specification with the drawn formula added to the prompt; the number of formula units is open."""
        if not draft.admitted:
            return spec._replace(stated=draft, formula_is_drawn=False)  # no composition was admitted
        return self._asking_for(spec, dict(draft.composition))._replace(draft=draft)

    def _asking_for(self, spec: SampleSpec, composition: Mapping[str, int]) -> SampleSpec:
        text, prompt = self._prompt_with(spec, _reduced(composition))
        written = "".join(f"{symbol}{number}" for symbol, number in composition.items())
        constraint = dataclasses.replace(spec.constraint, formula=written)
        guide = spec.guide if self.first_line else self._guide(spec.rules, spec.asked, written)
        return spec._replace(text=text, prompt=prompt, constraint=constraint, limits=limits_of(constraint), guide=guide)

    def _with_drafts(self, some: Mapping[int, SampleSpec], draft: DraftCompositions | None) -> Mapping[int, SampleSpec]:
        """Returns the specifications with formulas taken from crystals that were drawn without conditions."""
        asked = {index: spec for index, spec in some.items() if spec.formula_is_drawn}
        if not asked:
            return some
        if draft is None:
            raise ValueError("a property without a formula needs crystals to take formulas from")
        plain = {i: spec._replace(text=generation_prompt(), prompt=self._plain) for i, spec in asked.items()}
        found = {}
        for index, composition in draft(plain).items():
            if composition is None or not self._fitting(asked[index])(composition):
                found[index] = asked[index]._replace(stated=NOTHING)
            else:
                found[index] = self._asking_for(asked[index], composition)
        return {**some, **found}


def _reduced(composition: Mapping[str, int]) -> str:
    """Returns the reduced formula, as data sets and prompts write it."""
    return Composition(composition).reduced_formula
