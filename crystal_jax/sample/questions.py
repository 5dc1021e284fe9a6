"""What each sample of a job answers: a prompt, and what the answer must keep to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from crystal_jax.sample.constraints import Limits, make_limits
from crystal_jax.sample.formulas import LONGEST, Formulas
from crystal_jax.sample.guide import Guide
from crystal_jax.sample.rules import Rules, formula_of, make_guide
from crystal_jax.text.grammar import TokenAutomaton
from crystal_jax.text.prompts import Conditions, generation_prompt
from crystal_jax.text.tokenizer import Tokenizer, prompt_ids

_ANY_FORMULA = "H"  # stands in a prompt whose formula is yet to be drawn


class Question(NamedTuple):
    """Of one sample.

    Attributes:
        conditions: What is asked for, a drawn formula included.
        text, prompt: The prompt, and its ids with BOS.
        limits, guide: What the answer keeps to.
    """

    conditions: Conditions
    text: str
    prompt: tuple[int, ...]
    limits: Limits
    guide: Guide | None


class Questions:
    """Each of `asked` in turn, over and over: raising the number of samples renames none.

    Args:
        asked: Conditions.
        rules: Of the whole job.
        automaton, tokenizer: The language.
        drawn: The formula of each sample is yet to be drawn.

    Attributes:
        texts: The prompts, of `asked`; where formulas are drawn, with a placeholder.
        prompt_tokens: Length of the longest prompt, BOS included.

    Raises:
        ValueError: a condition is unknown or impossible, or a rule needs one that is not asked for.
    """

    def __init__(
        self, asked: Sequence[Conditions], rules: Rules, automaton: TokenAutomaton, tokenizer: Tokenizer, *, drawn: bool
    ):
        self._rules, self._tokenizer = rules, tokenizer
        self.texts = [generation_prompt(_with_formula(_ANY_FORMULA, one) if drawn else one) for one in asked]
        prompts = [prompt_ids(tokenizer, text) for text in self.texts]
        self.prompt_tokens = max(map(len, prompts)) + (LONGEST if drawn else 0)
        self._questions: list[Question] = []
        for one, text, prompt in zip(asked, self.texts, prompts, strict=True):
            stated, group = one.get("pretty_formula"), one.get("spacegroup.number")
            formula = str(stated) if stated else None
            guide = make_guide(
                rules,
                automaton,
                formula=formula,
                spacegroup=int(group) if group is not None else None,
            )
            limits = self._limits(None if drawn else formula_of(rules, formula))
            self._questions.append(Question(one, text, prompt, limits, guide))

    def __call__(
        self, indices: Sequence[int], formulas: Formulas | None, *, temperature: float, top_p: float
    ) -> Iterator[tuple[int, Question]]:
        """Pairs of a sample's number and its question; `formulas` states those that are to be drawn."""
        if formulas is None:
            for index in indices:
                yield index, self._questions[index % len(self._questions)]
            return
        for index, formula in formulas(indices, temperature=temperature, top_p=top_p):
            question = self._questions[index % len(self._questions)]
            conditions = _with_formula(formula, question.conditions)
            text = generation_prompt(conditions)
            limits = self._limits(formula_of(self._rules, formula))
            yield index, Question(conditions, text, prompt_ids(self._tokenizer, text), limits, question.guide)

    def _limits(self, held: str | None) -> Limits:
        return make_limits(
            elements=self._rules.elements,
            formula=held,
            min_atoms=self._rules.min_atoms,
            max_atoms=self._rules.max_atoms,
        )


def _with_formula(formula: str, conditions: Conditions) -> Conditions:
    """The formula comes first, as in training."""
    return {"pretty_formula": formula, **conditions}
