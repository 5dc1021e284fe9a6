"""The language of crystals as an automaton over a tokenizer's ids.

Every text this automaton accepts is read by `TextFormat.decode`, and every text `TextFormat.encode` writes (within
the limits on lengths and number of atoms) is accepted in its canonical tokenisation. Only the canonical one: LLaMA-2
could spell "Te" as one piece or as two, but a model has only ever seen the first, so the automaton is made of the
tokenizer's own spelling of each field, never of bytes.

It is built from the end to the beginning. A state is known by what may still follow; equal states are made once, so
the result is the smallest deterministic automaton of the language (Daciuk et al., Computational Linguistics 26, 2000).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Int

from crystal_jax.text.crystal_text import ELEMENTS, TextFormat
from crystal_jax.text.tokenizer import Tokenizer

FORBIDDEN = -1

_LENGTHS = tuple(f"{i / 10:.1f}" for i in range(10, 1000))  # Å
_ANGLES = tuple(str(i) for i in range(1, 180))  # degrees
_FRACTIONS = tuple(f"{i / 100:.2f}" for i in range(100))
_CARTESIAN = tuple(f"{i / 100:.2f}" for i in range(-9999, 10000))  # Å


@dataclasses.dataclass(frozen=True, eq=False)
class TokenAutomaton:
    """A deterministic automaton over the few tokens that its language uses.

    Attributes:
        token_ids: The ids it uses, ascending; the columns of `next_state`. Shape [k].
        next_state: The state after a token, or -1 where the token is forbidden. Shape [n_states, k]. After EOS
            comes a state in which EOS alone is allowed.
        start: The state before the first token.
        max_tokens: Length of the longest accepted sequence, EOS included.
        kind: Which part of an element symbol a state is in: 0 is none, 1 usually the beginning, and each further number
            one first token of those that several symbols share. Shape [n_states].
        reach: Which of `ELEMENTS` may still be written after a token, in a state of some kind. Shape [n_kinds, k, e].
        complete: Index of the element that is complete with a token, or -1. Shape [n_kinds, k].
        max_atoms: Most atoms of a text.
    """

    token_ids: Int[np.ndarray, " k"]
    next_state: Int[np.ndarray, "n_states k"]
    start: int
    max_tokens: int
    kind: Int[np.ndarray, " n_states"]
    reach: Bool[np.ndarray, "n_kinds k e"]
    complete: Int[np.ndarray, "n_kinds k"]
    max_atoms: int

    @property
    def allowed(self) -> Bool[np.ndarray, "n_states k"]:
        """Which tokens each state admits."""
        return self.next_state != FORBIDDEN

    @property
    def elements(self) -> frozenset[str]:
        """The elements that can be written."""
        return frozenset(ELEMENTS[i] for i in np.flatnonzero(self.reach.any(axis=(0, 1))))

    @property
    def end(self) -> int:
        """The state after EOS."""
        return len(self.next_state) - 1

    def accepts(self, ids: Iterable[int]) -> bool:
        """Whether a sequence of token ids, its EOS included, belongs to the language."""
        state = self.start
        for token in ids:
            if state == self.end or token not in self._columns:
                return False
            state = int(self.next_state[state, self._columns[token]])
            if state == FORBIDDEN:
                return False
        return state == self.end

    @functools.cached_property
    def _columns(self) -> dict[int, int]:
        return {int(token): column for column, token in enumerate(self.token_ids)}


Word = tuple[int, ...]


class _Builder:
    """Makes states from the last to the first; a state is an index into `transitions`."""

    def __init__(self, eos_id: int):
        self.transitions: list[dict[int, int]] = []
        self._known: dict[frozenset[tuple[int, int]], int] = {}
        self.eos_id = eos_id
        self.end = len(self.transitions)
        self.transitions.append({eos_id: self.end})

    def state(self, transitions: dict[int, int]) -> int:
        key = frozenset(transitions.items())
        if key not in self._known:
            self._known[key] = len(self.transitions)
            self.transitions.append(transitions)
        return self._known[key]

    def words(self, words: Iterable[Word], then: int) -> int:
        """The state in which any of `words` may be read, each followed by what state `then` reads.

        Raises:
            ValueError: after some word, it could not be told whether the next token still belongs to a longer one.
        """
        transitions: dict[int, int] = {}
        by_first: dict[int, list[Word]] = {}
        for word in words:
            if word:
                by_first.setdefault(word[0], []).append(word[1:])
            else:
                transitions = dict(self.transitions[then])
        for token, rest in by_first.items():
            if token in transitions:
                raise ValueError(f"Token {token} may both go on with a field and begin the next one")
            transitions[token] = then if rest == [()] else self.words(rest, then)
        return self.state(transitions)

    def either(self, *states: int) -> int:
        """The state that reads what any of the given ones reads; their first tokens must differ."""
        merged: dict[int, int] = {}
        for state in states:
            for token, following in self.transitions[state].items():
                if merged.setdefault(token, following) != following:
                    raise ValueError(f"Token {token} begins two different continuations")
        return self.state(merged)

    def table(self, start: int, symbols: Mapping[str, Word], begins: Sequence[int]) -> TokenAutomaton:
        """The automaton of what `start` reads, without the states that only helped to make others.

        `symbols` are the spellings of the elements, and `begins` the states in which one may begin.
        """
        reached, waiting = {start}, [start]
        while waiting:
            new = set(self.transitions[waiting.pop()].values()) - reached
            reached |= new
            waiting += new
        # Made from the last to the first, so in this order every state leads to later ones; the end is the last.
        row = {state: i for i, state in enumerate(sorted(reached, reverse=True))}
        used = sorted({token for state in reached for token in self.transitions[state]})
        column = {token: i for i, token in enumerate(used)}
        next_state = np.full((len(row), len(used)), FORBIDDEN, np.int32)
        longest = {self.end: 0}
        for state in sorted(reached):
            for token, following in self.transitions[state].items():
                next_state[row[state], column[token]] = row[following]
            if state != self.end:
                longest[state] = 1 + max(longest[following] for following in self.transitions[state].values())
        kinds = _SymbolKinds(next_state, {symbol: tuple(column[t] for t in word) for symbol, word in symbols.items()})
        tables = kinds.tables([row[state] for state in begins])
        return TokenAutomaton(
            np.array(used, np.int32), next_state, row[start], longest[start], *tables, max_atoms=len(begins)
        )


class _SymbolKinds:
    """Finds the states inside of element symbols; those in which the same tokens mean the same are of one kind."""

    def __init__(self, next_state: Int[np.ndarray, "n_states k"], symbols: Mapping[str, Word]):
        self._next_state = next_state
        self._symbols = {ELEMENTS.index(symbol): columns for symbol, columns in symbols.items()}
        # What a column means in a state: the elements it leaves possible, and the one it completes or -1.
        self._meaning: dict[int, dict[int, tuple[tuple[int, ...], int]]] = {}

    def tables(self, begins: Iterable[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`kind`, `reach` and `complete` of a `TokenAutomaton`."""
        for begin in begins:
            self._spell(begin, self._symbols)
        kinds: dict[frozenset, int] = {}
        kind = np.zeros(len(self._next_state), np.int32)
        for state, meaning in self._meaning.items():
            kind[state] = kinds.setdefault(frozenset(meaning.items()), len(kinds) + 1)
        width = self._next_state.shape[1]
        reach = np.zeros((len(kinds) + 1, width, len(ELEMENTS)), bool)
        complete = np.full((len(kinds) + 1, width), -1, np.int32)
        for meanings, number in kinds.items():
            for column, (elements, done) in meanings:
                reach[number, column, list(elements)] = True
                complete[number, column] = done
        return kind, reach, complete

    def _spell(self, state: int, symbols: Mapping[int, Word]) -> None:
        """Notes what the columns of a state mean in which the rest of one of `symbols` is to be written."""
        by_first: dict[int, dict[int, Word]] = {}
        for element, (first, *rest) in symbols.items():
            by_first.setdefault(first, {})[element] = tuple(rest)
        meaning = self._meaning.setdefault(state, {})
        for column, following in by_first.items():
            longer = {element: rest for element, rest in following.items() if rest}
            done = next((element for element, rest in following.items() if not rest), -1)
            meaning[column] = tuple(sorted(following)), -1 if longer else done
            if longer:
                after = int(self._next_state[state, column])
                self._spell(after, longer)
                if done >= 0:
                    # "N" and "Np" may begin alike. That it was the shorter one, only the token after it tells.
                    for other in np.flatnonzero(self._next_state[after] != FORBIDDEN).tolist():
                        self._meaning[after].setdefault(other, ((done,), done))


def crystal_automaton(
    tokenizer: Tokenizer,
    text_format: TextFormat,
    *,
    max_atoms: int = 20,
    elements: Sequence[str] = ELEMENTS,
) -> TokenAutomaton:
    """The automaton of crystal texts followed by EOS.

    Args:
        tokenizer: Spells the fields.
        text_format: Decides which coordinates there are.
        max_atoms: Most atoms in the cell; there is at least one.
        elements: Element symbols that may occur.

    Raises:
        ValueError: no elements, an unknown one, or `max_atoms` below 1.
    """
    if unknown := set(elements) - set(ELEMENTS):
        raise ValueError(f"Not elements: {', '.join(sorted(unknown))}")
    if not elements:
        raise ValueError("A crystal needs at least one allowed element")
    if max_atoms < 1:
        raise ValueError(f"max_atoms must be at least 1, not {max_atoms}")

    def spell(separator: str, values: Iterable[str]) -> list[Word]:
        return [word for value in values if (word := _spelling(tokenizer, separator, value))]

    coordinates = _FRACTIONS
    if text_format.coordinates == "cartesian":
        coordinates = _CARTESIAN
    elif text_format.version == "paper":
        coordinates = (*_FRACTIONS, "1.00")
    first, later = spell("\n", coordinates), spell(" ", coordinates)
    symbols = {symbol: word for symbol in elements if (word := _spelling(tokenizer, "\n", symbol))}

    builder = _Builder(tokenizer.eos_id)
    finish = builder.state({tokenizer.eos_id: builder.end})
    after_atom, begins = finish, []
    for atoms_before in reversed(range(max_atoms)):
        state = after_atom
        for words in (later, later, first, symbols.values()):
            state = builder.words(words, state)
        # The first atom must come; before each further one the crystal may end.
        after_atom = builder.either(finish, state) if atoms_before else state
        begins.append(after_atom)
    state = after_atom
    for separator, values in [
        *((s, _ANGLES) for s in (" ", " ", "\n")),
        *((s, _LENGTHS) for s in (" ", " ", "")),
    ]:
        state = builder.words(spell(separator, values), state)
    return builder.table(state, symbols, begins)


def _spelling(tokenizer: Tokenizer, separator: str, value: str) -> Word | None:
    """`None` for a value outside of a compact vocabulary: it can be neither trained on nor sampled."""
    try:
        return tokenizer.spell(separator, value)
    except ValueError:
        return None
