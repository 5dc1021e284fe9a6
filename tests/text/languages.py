"""The language of a whole text: of its first line, where a format has one, and of what comes after it."""

from collections.abc import Iterator, Sequence

import numpy as np

from crystal_jax.text.crystal_text import TextFormat
from crystal_jax.text.grammar.automaton import TokenAutomaton
from crystal_jax.text.grammar.composition import CompositionGrammar, ParserState
from crystal_jax.text.grammar.composition_constraint import CompositionConstraint
from crystal_jax.text.grammar.crystal import crystal_automaton
from crystal_jax.text.tokenizer import Tokenizer


class Language:
    """What sampling may write after a prompt, as token ids, EOS included."""

    def __init__(self, tokenizer: Tokenizer, text_format: TextFormat, *, max_atoms: int = 20):
        self.automaton: TokenAutomaton = crystal_automaton(tokenizer, text_format, max_atoms=max_atoms)
        has_line = text_format.layout.block is not None
        self.line = CompositionGrammar(tokenizer, text_format, max_atoms=max_atoms) if has_line else None
        self.max_tokens = self.automaton.max_tokens + (self.line.max_tokens if self.line else 0)

    def accepts(self, ids: Sequence[int]) -> bool:
        if self.line is None:
            return self.automaton.accepts(ids)
        stop = next((i for i, token in enumerate(ids) if token in self.line.ends), len(ids))
        columns = [np.flatnonzero(self.line.token_ids == token) for token in ids[:stop]]
        if not all(map(len, columns)):
            return False
        line = walk(self.line, [int(column) for (column,) in columns], self.line.anything)
        return line is not None and self.automaton.accepts(ids[stop:])

    def random(self, rng: np.random.Generator) -> list[int]:
        """A sequence drawn uniformly from what is allowed at each step."""
        return [*self._random_line(rng), *random_walk(self.automaton, rng)]

    def _random_line(self, rng: np.random.Generator) -> Iterator[int]:
        if self.line is None:
            return
        place = ParserState()
        while (column := rng.choice(np.flatnonzero(self.line.open(place, self.line.anything)))) != self.line.end:
            place = self.line.step(place, column)
            yield int(self.line.token_ids[column])


def walk(line: CompositionGrammar, columns: Sequence[int], wanted: CompositionConstraint) -> ParserState | None:
    """The place after a line; None where it may not be written."""
    place = ParserState()
    for column in [*columns, line.end]:
        if not line.open(place, wanted)[column]:
            return None
        if column != line.end:
            place = line.step(place, column)
    return place


def random_walk(automaton: TokenAutomaton, rng: np.random.Generator) -> list[int]:
    state, ids = automaton.start, []
    while state != automaton.end:
        column = rng.choice(np.flatnonzero(automaton.allowed[state]))
        ids.append(int(automaton.token_ids[column]))
        state = int(automaton.next_state[state, column])
    return ids
