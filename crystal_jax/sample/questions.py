"""What each sample of a job answers: a prompt, and what the answer must keep to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from flax import nnx
from jax.sharding import Mesh

from crystal_jax.config import ModelConfig
from crystal_jax.sample.compositions import Asked, Compositions, Stated
from crystal_jax.sample.constraints import Limits, exactly, formula_unit, make_limits
from crystal_jax.sample.guide import Guide
from crystal_jax.sample.rules import Rules, formula_of, make_guide
from crystal_jax.sample.scheduler import Drawn
from crystal_jax.text.automaton import TokenAutomaton
from crystal_jax.text.crystal_text import TextFormat
from crystal_jax.text.first_line import FirstLine, Wanted
from crystal_jax.text.prompts import Conditions, generation_prompt
from crystal_jax.text.tokenizer import Tokenizer, prompt_ids

_AT_ONCE = 256  # questions whose first lines are drawn together


class Question(NamedTuple):
    """Of one sample.

    Attributes:
        conditions: What is asked for.
        text, prompt: The prompt, and its ids with BOS.
        limits, guide: What the answer keeps to.
        wanted: What its first line keeps to, if it has one.
        stated: That line, which stands between the prompt and what is yet to be written.
    """

    conditions: Conditions
    text: str
    prompt: tuple[int, ...]
    limits: Limits
    guide: Guide | None
    wanted: Wanted
    stated: Stated | None = None

    @property
    def rejected(self) -> int:
        """First lines that were drawn before its own and not admitted."""
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
        asked: Conditions.
        rules: Of the whole job.
        automaton: The grammar, without a first line.
        tokenizer, text_format: Of the texts. Those that begin with a composition are held to it, and it is drawn first.

    Attributes:
        texts: The prompts, of `asked`.
        prompt_tokens: Length of the longest prompt, BOS included.
        first_line: The language of first lines, if texts have them.
        head_tokens: Length of the longest `Question.head`.

    Raises:
        ValueError: a condition is unknown or impossible, or a rule needs one that is not asked for.
    """

    def __init__(
        self,
        asked: Sequence[Conditions],
        rules: Rules,
        automaton: TokenAutomaton,
        tokenizer: Tokenizer,
        text_format: TextFormat,
    ):
        self.texts = [generation_prompt(one) for one in asked]
        prompts = [prompt_ids(tokenizer, text) for text in self.texts]
        self.prompt_tokens = max(map(len, prompts))
        has_line = text_format.layout.block is not None
        self.first_line = FirstLine(tokenizer, text_format, max_atoms=automaton.max_atoms) if has_line else None
        self.head_tokens = self.prompt_tokens + (self.first_line.max_tokens if self.first_line else 0)
        self._questions: list[Question] = []
        for one, text, prompt in zip(asked, self.texts, prompts, strict=True):
            formula, group = one.get("pretty_formula"), one.get("spacegroup.number")
            guide = make_guide(
                rules,
                automaton,
                formula=str(formula) if formula else None,
                spacegroup=int(group) if group is not None else None,
                stated=has_line,
            )
            held = formula_of(rules, str(formula) if formula else None)
            limits = make_limits(
                elements=rules.elements, formula=held, min_atoms=rules.min_atoms, max_atoms=rules.max_atoms
            )
            unit = tuple(formula_unit(held).items()) if held else ()
            wanted = Wanted(frozenset(rules.elements), rules.min_atoms, rules.max_atoms, unit)
            self._questions.append(Question(one, text, prompt, limits, guide, wanted))

    def make_compositions(
        self,
        graph: nnx.GraphDef,
        cfg: ModelConfig,
        mesh: Mesh,
        *,
        seed: int,
        admit: Callable[[Mapping[str, int]], bool] = lambda counts: True,
        at_once: int = 64,
    ) -> Compositions | None:
        """What draws these questions' first lines (see there); None where texts have none."""
        if self.first_line is None:
            return None
        most = self.prompt_tokens
        return Compositions(
            graph, cfg, self.first_line, mesh, prompt_tokens=most, admit=admit, seed=seed, at_once=at_once
        )

    def __call__(
        self, indices: Sequence[int], state: Callable[[Sequence[Asked]], Iterator[Stated]] | None = None
    ) -> Iterator[tuple[int, Question]]:
        """Pairs of a sample's number and its question; `state` draws first lines, where there are any."""
        for begin in range(0, len(indices), _AT_ONCE):
            some = indices[begin : begin + _AT_ONCE]
            questions = [self._questions[index % len(self._questions)] for index in some]
            if state is None:
                yield from zip(some, questions, strict=True)
                continue
            lines = [
                Asked(index=index, prompt=question.prompt, wanted=question.wanted)
                for index, question in zip(some, questions, strict=True)
            ]
            for index, question, line in zip(some, questions, state(lines), strict=True):
                yield index, question._replace(limits=exactly(dict(line.composition)), stated=line)
