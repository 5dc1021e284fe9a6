"""Grammar of the composition line: elements in the order of electronegativity, each once.

A finite automaton over the whole text could not remember the composition until the sites. So the composition line has
its own grammar, run on the host, which counts atoms exactly. The site section is then constrained to that composition.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from crystal_jax.errors import RequestError
from crystal_jax.text.crystal_text import ELEMENTS, TextFormat
from crystal_jax.text.grammar.composition_constraint import MAX_ELEMENTS, CompositionConstraint, Parts
from crystal_jax.text.grammar.crystal import LENGTHS, spelling
from crystal_jax.text.tokenizer import Tokenizer

Word = tuple[int, ...]  # columns

# The first field after the composition line, where it is not a length.
_AFTER_LINE = {"wyckoff": tuple(map(str, range(1, 231)))}


class ParserState(NamedTuple):
    """State of the parser within a composition line.

    Attributes:
        parts: the completed elements, with their numbers of atoms.
        symbol: the element whose number is being written; None while a symbol is being written.
        written: columns written so far of the current symbol or number.
    """

    parts: Parts = ()
    symbol: str | None = None
    written: Word = ()


class CompositionGrammar:
    """Composition lines over a tokenizer's ids, as columns: indices into `token_ids`, and a last column that ends the
    line.

    Any token that can begin the lattice ends the line; this token is not part of the line.

    Attributes:
        token_ids: token id of each column except the last.
        ends: ids of the tokens that end a line.
        end: the last column, which ends the line.
        anything: the grammar's own constraint: the limits on numbers of atoms and of elements.
        max_tokens: number of tokens of the longest line, without its end.
    """

    def __init__(self, tokenizer: Tokenizer, text_format: TextFormat, *, max_atoms: int = 20):
        """Builds the grammar.

        Raises:
            ValueError: the format has no composition line, or the tokenizer cannot spell it.
        """
        layout = text_format.layout
        if layout.block is None:
            raise RequestError(f"texts of the version {text_format.version!r} have no first line")
        spelled: dict[str, Mapping[str | int, Word]] = {
            # A tokenizer may join the first symbol with the text before it.
            "first": {symbol: tokenizer.spell("", layout.block + symbol) for symbol in ELEMENTS},
            "later": {symbol: tokenizer.spell("", symbol) for symbol in ELEMENTS},
            "number": {n: tokenizer.spell("", str(n)) for n in range(1, max_atoms + 1)},
        }
        self.anything = CompositionConstraint(max_atoms=max_atoms)
        ids = sorted({token for words in spelled.values() for word in words.values() for token in word})
        following = _AFTER_LINE.get(text_format.version, LENGTHS)
        first_words = (spelling(tokenizer, layout.separator(0), value) for value in following)
        ends = sorted({word[0] for word in first_words if word})
        if set(ids) & set(ends):
            raise RequestError(f"the {tokenizer.name} tokenizer does not tell a composition from the lattice after it")
        self.token_ids, self.ends, self.end = np.array(ids, np.int32), np.array(ends, np.int32), len(ids)
        column = {token: i for i, token in enumerate(ids)}
        self._words = {
            kind: {value: tuple(column[token] for token in word) for value, word in words.items()}
            for kind, words in spelled.items()
        }
        self._values = {kind: {word: value for value, word in words.items()} for kind, words in self._words.items()}
        self._beginnings = {
            kind: {word[:n] for word in values for n in range(1, len(word) + 1)}
            for kind, values in self._values.items()
        }
        longest = {kind: max(map(len, values)) for kind, values in self._values.items()}
        later = (MAX_ELEMENTS - 1) * (longest["later"] + longest["number"])
        self.max_tokens = longest["first"] + longest["number"] + later
        self._next = functools.lru_cache(maxsize=10_000)(self._find_next)

    def open(self, place: ParserState, wanted: CompositionConstraint) -> Bool[np.ndarray, " k"]:
        """Returns the columns allowed after a state; the last column is the end of the line."""
        kind = _kind(place)
        values = (
            wanted.next_elements(place.parts) if place.symbol is None else wanted.next_counts(place.parts, place.symbol)
        )
        found: Bool[np.ndarray, " k"] = self._next(kind, values, place.written)
        value = self._values[kind].get(place.written)
        if value is None or value not in values:
            return found
        if place.symbol is None:
            found = found | self._next("number", wanted.next_counts(place.parts, str(value)), ())
        else:
            parts = (*place.parts, (place.symbol, int(value)))
            found = found | self._next("later", wanted.next_elements(parts), ())
            found[self.end] = wanted.is_met(parts)
        return found

    def step(self, place: ParserState, column: int) -> ParserState:
        """Returns the state after a column other than the end."""
        longer = (*place.written, column)
        if longer in self._beginnings[_kind(place)]:
            return place._replace(written=longer)
        if place.symbol is None:
            return ParserState(place.parts, str(self._values[_kind(place)][place.written]), (column,))
        return ParserState(self.composition(place), None, (column,))

    def composition(self, place: ParserState) -> Parts:
        """Returns the composition of a line that ends in this state."""
        assert place.symbol is not None
        return (*place.parts, (place.symbol, int(self._values["number"][place.written])))

    def _find_next(self, kind: str, values: tuple[str | int, ...], written: Word) -> Bool[np.ndarray, " k"]:
        """Returns the columns that continue one of these values."""
        found = np.zeros(self.end + 1, bool)
        words = (self._words[kind][value] for value in values)
        found[
            [word[len(written)] for word in words if len(word) > len(written) and word[: len(written)] == written]
        ] = True
        return found


def _kind(place: ParserState) -> str:
    if place.symbol is not None:
        return "number"
    return "later" if place.parts else "first"
