"""What each sample of a job answers: a prompt, and what the answer must keep to.

A model learns properties after a formula: the formula always comes first in a prompt (Gruver et al., section 3). Asked
for a property alone, it was never trained on such a prompt and mostly writes pure elements. So where properties are
asked for without a formula, the formula is drawn first, by the model itself without any request, under the limits on
the composition; then formula and properties are asked for together. The formulas of such samples therefore follow the
model's unconditional distribution, restricted to the limits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from flax import nnx
from jax.sharding import Mesh
from pymatgen.core import Composition

from crystal_jax.config import ModelConfig
from crystal_jax.sample.composition import NOTHING, Admit, CompositionDraw, CompositionRequest, CompositionSampler
from crystal_jax.sample.constraints.guide import Guide
from crystal_jax.sample.constraints.masks import CompositionLimits, exactly, limits_of
from crystal_jax.sample.constraints.rules import Rules, kept_formula, make_admission, make_guide, merged_with
from crystal_jax.sample.engine.request import Completion
from crystal_jax.sample.requests import FORMULA, SPACEGROUP, Asked, conditions_of
from crystal_jax.text.crystal_text import TextFormat
from crystal_jax.text.grammar.automaton import TokenAutomaton
from crystal_jax.text.grammar.composition import CompositionGrammar
from crystal_jax.text.grammar.composition_constraint import CompositionConstraint
from crystal_jax.text.prompts import generation_prompt
from crystal_jax.text.tokenizer import Tokenizer, prompt_ids

_AT_ONCE = 256  # questions whose compositions are drawn together
# Attempts are numbered, and their numbers decide the random numbers: the second line of a sample, after its formula
# was drawn, and a crystal that is drawn for its formula only, must not repeat the numbers of others. There are at most
# 4,000 attempts at first lines.
_SECOND_LINE = 1 << 16
DRAFT = 1 << 20
_USUAL_ATOMS = 20  # of cells that models are trained on: fewer are a limit, not another language
# About the longest formula of such a cell; it decides how much room prompts get.
_LONG_FORMULA = "Li2Fe2Mn2Co2(Si2B2P2S2O2F2)10"


class SampleSpec(NamedTuple):
    """What one sample answers.

    Attributes:
        asked: What the user asks for.
        rules: What the answer keeps to, by name.
        text, prompt: The prompt, and its ids with BOS.
        constraint: What the composition must be.
        limits, guide: The rules for what is written after the composition line, if there is one.
        admit: A further test of the composition.
        formula_is_drawn: Properties are asked for without a formula: the model draws one first.
        stated: The composition line, which stands between the prompt and what is yet to be written.
        draft: Where the formula was drawn, the line that it comes from.
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
        """Returns the number of the first attempt at a composition that was not made yet."""
        line = self.draft or self.stated
        return line.next_attempt if line else 0

    @property
    def head(self) -> tuple[int, ...]:
        """Returns the ids after which writing begins."""
        return self.prompt + (self.stated.ids if self.stated else ())

    def log_probs(self, drawn: Completion) -> tuple[list[float], float]:
        """Returns `log_probs` and `log_allowed_mass` of a whole answer, its composition line included."""
        if self.stated is None:
            return list(drawn.log_probs), drawn.log_allowed_mass
        # The first token after a line is one of those that end it.
        *line, end = self.stated.log_probs
        first, *others = drawn.log_probs or (0.0,)
        return [*line, end + first, *others], self.stated.log_allowed_mass + drawn.log_allowed_mass


# Draws composition lines, in order.
StateLines = Callable[[Sequence[CompositionRequest]], Iterator[CompositionDraw]]
# Draws crystals without a request under the limits of these questions, and returns their compositions: None where it
# comes to nothing. For texts without a composition line.
DraftCompositions = Callable[[Mapping[int, SampleSpec]], Mapping[int, Mapping[str, int] | None]]


class SampleSpecBuilder:
    """Answers which question each sample has: the requests in turn, so that more samples rename none.

    Args:
        asked: Requests (see sample/requests.py).
        rules: Of the whole job; a request may add to them.
        automaton: The grammar, without a composition line.
        tokenizer, text_format: Of the texts. Those that begin with a composition are held to it, and it is drawn first.

    Attributes:
        texts: The prompts, of `asked`; where a formula is drawn, without it.
        constraints: All that are in use, by name.
        prompt_tokens: Length of the longest prompt, BOS included.
        first_line: The language of composition lines, if texts have them.
        head_tokens: Length of the longest `Question.head`.

    Raises:
        ValueError: a condition is unknown or impossible, or a rule needs one that is not asked for.
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
        self._plain = prompt_ids(tokenizer, generation_prompt())
        has_line = text_format.layout.block is not None
        most = max(automaton.max_atoms, _USUAL_ATOMS)
        self.first_line = CompositionGrammar(tokenizer, text_format, max_atoms=most) if has_line else None
        self._admissions: dict[Rules, Admit] = {}
        self._questions: list[SampleSpec] = []
        for number, one in enumerate(asked, start=1):
            try:
                self._questions.append(self._question(one, merged_with(rules, one)))
            except ValueError as error:
                raise ValueError(f"request {number}: {error}" if len(asked) > 1 else str(error)) from error
        self.texts = [question.text for question in self._questions]
        self.constraints = frozenset[str]().union(*(question.rules.constraints for question in self._questions))
        self.prompt_tokens = max(len(self._plain), *map(self._longest_prompt, self._questions))
        self.head_tokens = self.prompt_tokens + (self.first_line.max_tokens if self.first_line else 0)

    def __len__(self) -> int:
        """Returns the number of requests."""
        return len(self._questions)

    @property
    def draws_formulas(self) -> bool:
        """Whether some request has hints without a formula."""
        return any(question.formula_is_drawn for question in self._questions)

    def number_of(self, index: int) -> int:
        """Returns the number, from 0, of the request that sample `index` answers."""
        return index % len(self._questions)

    def _question(self, asked: Asked, rules: Rules) -> SampleSpec:
        conditions = conditions_of(asked)
        formula = kept_formula(rules, conditions.get(FORMULA))
        constraint = rules.composition(formula)
        if rules not in self._admissions:  # which remembers what it has found out
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
            admit=self._admissions[rules],
            formula_is_drawn=bool(conditions) and FORMULA not in conditions,
        )

    def _guide(
        self, rules: Rules, asked: Asked, formula: str | None, composition: Mapping[str, int] | None = None
    ) -> Guide | None:
        return make_guide(
            rules,
            self._automaton,
            formula=formula,
            spacegroup=asked.get(SPACEGROUP),
            composition_first=self.first_line is not None,
            composition=composition,
        )

    def _longest_prompt(self, question: SampleSpec) -> int:
        """Returns how many tokens a question's prompt may have, with the formula that is drawn for it."""
        if not question.formula_is_drawn:
            return len(question.prompt)
        return len(self._prompt_with(question, _LONG_FORMULA)[1])

    def _prompt_with(self, question: SampleSpec, formula: str) -> tuple[str, tuple[int, ...]]:
        """Returns the prompt that asks for a formula, and then for what the question asks for."""
        text = generation_prompt({FORMULA: formula, **conditions_of(question.asked)})
        return text, prompt_ids(self._tokenizer, text)

    def make_compositions(
        self,
        graph: nnx.GraphDef,
        cfg: ModelConfig,
        mesh: Mesh,
        *,
        seed: int,
        at_once: int = 64,
    ) -> CompositionSampler | None:
        """Returns what draws these questions' composition lines (see there); None where texts have none."""
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
        """Yields each sample's number and its question, with its composition line where texts have one.

        Args:
            indices: Numbers of the samples.
            state: Draws composition lines; needed where texts have them.
            draft: Draws compositions where texts have no such line; needed if a formula is drawn there.
            first: How many attempts at a sample's composition were made before.
        """
        for begin in range(0, len(indices), _AT_ONCE):
            some = {index: self._questions[self.number_of(index)] for index in indices[begin : begin + _AT_ONCE]}
            if state is None:
                yield from self._with_drafts(some, draft).items()
                continue
            for index, line in self._state(state, some, first, drafting=True):
                some[index] = self._with_formula(some[index], line)
            for index, line in self._state(state, some, first, drafting=False):
                counts = dict(line.composition)
                question = some[index]._replace(limits=exactly(counts), stated=line)
                if line.admitted and "distance" in question.rules.constraints:
                    guide = self._guide(question.rules, question.asked, None, counts)
                    question = question._replace(guide=guide)
                some[index] = question
            yield from some.items()

    def _state(
        self, state: StateLines, some: Mapping[int, SampleSpec], first: Mapping[int, int], *, drafting: bool
    ) -> Iterator[tuple[int, CompositionDraw]]:
        """Draws the composition lines of questions: those that formulas come from, or those that stand in the texts."""
        if drafting:
            asked = {i: q for i, q in some.items() if q.formula_is_drawn}
        else:
            asked = {i: q for i, q in some.items() if q.stated is None}
        lines = [
            CompositionRequest(
                index=index,
                prompt=self._plain if drafting else question.prompt,
                wanted=question.constraint,
                admit=self._fitting(question) if drafting else question.admit,
                first=first.get(index, 0) if question.draft is None else _SECOND_LINE * (1 + first.get(index, 0)),
            )
            for index, question in asked.items()
        ]
        yield from zip(asked, state(lines), strict=True)

    def _fitting(self, question: SampleSpec) -> Admit:
        """Returns the question's test of compositions, to which a prompt that would be too long is added."""

        def admit(composition: Mapping[str, int]) -> bool:
            if not question.admit(composition):
                return False
            return len(self._prompt_with(question, _reduced(composition))[1]) <= self.prompt_tokens

        return admit

    def _with_formula(self, question: SampleSpec, draft: CompositionDraw) -> SampleSpec:
        """Returns the question that asks for the drawn formula, too; how many formula units there are is left open."""
        if not draft.admitted:
            return question._replace(stated=draft, formula_is_drawn=False)  # a dead end
        return self._asking_for(question, dict(draft.composition))._replace(draft=draft)

    def _asking_for(self, question: SampleSpec, composition: Mapping[str, int]) -> SampleSpec:
        text, prompt = self._prompt_with(question, _reduced(composition))
        written = "".join(f"{symbol}{number}" for symbol, number in composition.items())
        constraint = dataclasses.replace(question.constraint, formula=written)
        guide = question.guide if self.first_line else self._guide(question.rules, question.asked, written)
        return question._replace(
            text=text, prompt=prompt, constraint=constraint, limits=limits_of(constraint), guide=guide
        )

    def _with_drafts(self, some: Mapping[int, SampleSpec], draft: DraftCompositions | None) -> Mapping[int, SampleSpec]:
        """Returns questions whose formulas are those of crystals that were drawn without a request."""
        asked = {index: question for index, question in some.items() if question.formula_is_drawn}
        if not asked:
            return some
        if draft is None:
            raise ValueError("a property without a formula needs crystals to take formulas from")
        plain = {i: question._replace(text=generation_prompt(), prompt=self._plain) for i, question in asked.items()}
        found = {}
        for index, composition in draft(plain).items():
            if composition is None or not self._fitting(asked[index])(composition):
                found[index] = asked[index]._replace(stated=NOTHING)
            else:
                found[index] = self._asking_for(asked[index], composition)
        return {**some, **found}


def _reduced(composition: Mapping[str, int]) -> str:
    """Returns the formula as data sets and prompts have it."""
    return Composition(composition).reduced_formula
