"""What each sample of a job answers: a prompt, and what the answer must keep to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from flax import nnx
from jax.sharding import Mesh

from crystal_jax.config import ModelConfig
from crystal_jax.sample.compositions import Admit, Compositions, Stated, ToState
from crystal_jax.sample.constraints import Limits, exactly, formula_unit, make_limits
from crystal_jax.sample.guide import Guide
from crystal_jax.sample.requests import Asked, conditions_of
from crystal_jax.sample.rules import Rules, formula_of, make_admission, make_guide, narrowed
from crystal_jax.sample.texts import Drawn
from crystal_jax.text.automaton import TokenAutomaton
from crystal_jax.text.crystal_text import TextFormat
from crystal_jax.text.first_line import FirstLine, Wanted
from crystal_jax.text.prompts import generation_prompt
from crystal_jax.text.tokenizer import Tokenizer, prompt_ids

_AT_ONCE = 256  # questions whose first lines are drawn together


class Question(NamedTuple):
    """Of one sample.

    Attributes:
        asked: What is asked for.
        rules: What the answer keeps to, by name.
        text, prompt: The prompt, and its ids with BOS.
        limits, guide: These rules for what is written after its first line, if it has one.
        wanted, admit: And for that line.
        stated: That line, which stands between the prompt and what is yet to be written.
    """

    asked: Asked
    rules: Rules
    text: str
    prompt: tuple[int, ...]
    limits: Limits
    guide: Guide | None
    wanted: Wanted
    admit: Admit
    stated: Stated | None = None

    @property
    def rejected(self) -> int:
        """First lines that were drawn before its own, and not admitted or not kept to."""
        return self.stated.rejected if self.stated else 0

    @property
    def head(self) -> tuple[int, ...]:
        """The ids after which writing begins."""
        return self.prompt + (self.stated.ids if self.stated else ())

    def log_probs(self, drawn: Drawn) -> tuple[list[float], float]:
        """`log_probs` and `log_kept` of a whole answer, its first line included."""
        if self.stated is None:
            return list(drawn.log_probs), drawn.log_kept
        # The first token after a line is one of those that end it.
        *line, end = self.stated.log_probs
        first, *others = drawn.log_probs or (0.0,)
        return [*line, end + first, *others], self.stated.log_kept + drawn.log_kept


class Questions:
    """Each of `asked` in turn, over and over: raising the number of samples renames none.

    Args:
        asked: Requests (see `read_requests`).
        rules: Of the whole job; a request may add to them.
        automaton: The grammar, without a first line.
        tokenizer, text_format: Of the texts. Those that begin with a composition are held to it, and it is drawn first.

    Attributes:
        texts: The prompts, of `asked`.
        constraints: All that are in use, by name.
        prompt_tokens: Length of the longest prompt, BOS included.
        first_line: The language of first lines, if texts have them.
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
        self.texts = [generation_prompt(conditions_of(one)) for one in asked]
        prompts = [prompt_ids(tokenizer, text) for text in self.texts]
        self.prompt_tokens = max(map(len, prompts))
        has_line = text_format.layout.block is not None
        self.first_line = FirstLine(tokenizer, text_format, max_atoms=automaton.max_atoms) if has_line else None
        self.head_tokens = self.prompt_tokens + (self.first_line.max_tokens if self.first_line else 0)
        self._admissions: dict[Rules, Admit] = {}
        self._questions: list[Question] = []
        for number, (one, text, prompt) in enumerate(zip(asked, self.texts, prompts, strict=True), start=1):
            try:
                self._questions.append(self._question(one, narrowed(rules, one), automaton, text, prompt))
            except ValueError as error:
                raise ValueError(f"request {number}: {error}" if len(asked) > 1 else str(error)) from error
        self.constraints = frozenset[str]().union(*(question.rules.constraints for question in self._questions))

    def _question(
        self, asked: Asked, rules: Rules, automaton: TokenAutomaton, text: str, prompt: tuple[int, ...]
    ) -> Question:
        formula, group = asked.get("pretty_formula"), asked.get("spacegroup.number")
        guide = make_guide(
            rules,
            automaton,
            formula=str(formula) if formula else None,
            spacegroup=int(group) if group is not None else None,
            stated=self.first_line is not None,
        )
        held = formula_of(rules, str(formula) if formula else None)
        limits = make_limits(
            elements=rules.elements, formula=held, min_atoms=rules.min_atoms, max_atoms=rules.max_atoms
        )
        unit = tuple(formula_unit(held).items()) if held else ()
        wanted = Wanted(frozenset(rules.elements), rules.min_atoms, rules.max_atoms, unit)
        if rules not in self._admissions:  # which remembers what it has found out
            self._admissions[rules] = make_admission(rules, automaton)
        return Question(asked, rules, text, prompt, limits, guide, wanted, self._admissions[rules])

    def make_compositions(
        self,
        graph: nnx.GraphDef,
        cfg: ModelConfig,
        mesh: Mesh,
        *,
        seed: int,
        at_once: int = 64,
    ) -> Compositions | None:
        """What draws these questions' first lines (see there); None where texts have none."""
        if self.first_line is None:
            return None
        most = self.prompt_tokens
        return Compositions(graph, cfg, self.first_line, mesh, prompt_tokens=most, seed=seed, at_once=at_once)

    def __call__(
        self,
        indices: Sequence[int],
        state: Callable[[Sequence[ToState]], Iterator[Stated]] | None = None,
        *,
        first: Mapping[int, int] = MappingProxyType({}),
    ) -> Iterator[tuple[int, Question]]:
        """Pairs of a sample's number and its question; `state` draws first lines, where there are any.

        `first` has how many of a sample were drawn before.
        """
        for begin in range(0, len(indices), _AT_ONCE):
            some = indices[begin : begin + _AT_ONCE]
            questions = [self._questions[index % len(self._questions)] for index in some]
            if state is None:
                yield from zip(some, questions, strict=True)
                continue
            lines = [
                ToState(
                    index=index,
                    prompt=question.prompt,
                    wanted=question.wanted,
                    admit=question.admit,
                    first=first.get(index, 0),
                )
                for index, question in zip(some, questions, strict=True)
            ]
            for index, question, line in zip(some, questions, state(lines), strict=True):
                yield index, question._replace(limits=exactly(dict(line.composition)), stated=line)
