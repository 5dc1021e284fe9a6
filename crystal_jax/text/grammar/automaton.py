"""Deterministic automaton over token ids that knows the meaning of its tokens, and its builder.

The automaton is built from the end to the beginning. States are hash-consed by (possible continuations, text of the
current field), so the automaton is minimal with respect to both (as for minimal automata: Daciuk et al., Computational
Linguistics 26, 2000). A state therefore tells which values its field can still take. The language itself is defined in
text/grammar/crystal.py.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from crystal_jax.errors import RequestError

FORBIDDEN = -1
END = ""  # value that ends a crystal, in place of the next element
ANY = "*"  # the only value of a field whose values are not distinguished
FIELDS = ("length", "angle", "xy", "z", "spacegroup", "position", "coordinate", "element")
MOST_VALUES = 2000  # largest number of values of a field that are distinguished


@dataclasses.dataclass(frozen=True, eq=False)
class TokenAutomaton:
    """Deterministic automaton over the tokens of its language, with the meaning of the tokens.

    A text is a sequence of fields: three lengths, three angles, then an element, x, y and z per atom; or those of
    text/grammar/wyckoff.py. Values are numbered in the order of their spellings, so the values that are still possible
    after a token are a range. A separator belongs to the field after it.

    Attributes:
        token_ids: token ids of the columns of `next_state`, ascending. Shape [k].
        next_state: the state after a token, or -1 if the token is forbidden. Shape [n_states, k]. After EOS comes a
            state in which only EOS is allowed.
        start: the state before the first token.
        max_tokens: length of the longest accepted sequence, including EOS.
        max_atoms: largest number of atoms in a text.
        values: values of all fields, field by field; the last one is empty and means the end of a crystal, in place of
            an element.
        fields: ranges of `values` that belong to a field, of those in `FIELDS` that the language has; Cartesian
            coordinates are not distinguished.
        turn: number of a state's field in the text: 0 to 5 in the lattice, then four per atom; it never decreases along
            a text. Shape [n_states].
        kind: kind of a state; states of one kind are at the same point of the same type of field; 0 is the end. Shape
            [n_states].
        first, last: range of the values possible after a column: from `first` to before `last`. Shape [n_kinds, k].
        done: the value that a column completes, or -1. Shape [n_kinds, k].
        separate: whether no token contains parts of two fields, apart from separators.
    """

    token_ids: Int[np.ndarray, " k"]
    next_state: Int[np.ndarray, "n_states k"]
    start: int
    max_tokens: int
    max_atoms: int
    values: tuple[str, ...]
    fields: Mapping[str, slice]
    turn: Int[np.ndarray, " n_states"]
    kind: Int[np.ndarray, " n_states"]
    first: Int[np.ndarray, "n_kinds k"]
    last: Int[np.ndarray, "n_kinds k"]
    done: Int[np.ndarray, "n_kinds k"]
    separate: bool

    @property
    def allowed(self) -> Bool[np.ndarray, "n_states k"]:
        """Tokens that each state allows."""
        allowed: Bool[np.ndarray, "n_states k"] = self.next_state != FORBIDDEN
        return allowed

    @property
    def elements(self) -> frozenset[str]:
        """Elements of the language."""
        return frozenset(self.values[self.fields["element"]]) - {END}

    @property
    def end(self) -> int:
        """The state after EOS."""
        return len(self.next_state) - 1

    def accepts(self, ids: Iterable[int]) -> bool:
        """Whether a sequence of token ids, including EOS, belongs to the language."""
        state = self.start
        for token in ids:
            if state == self.end or token not in self._columns:
                return False
            state = int(self.next_state[state, self._columns[token]])
            if state == FORBIDDEN:
                return False
        return state == self.end

    def read(self, columns: Iterable[int]) -> list[str]:
        """Returns the completed field values of a text given as columns, without the end."""
        state, found = self.start, []
        for column in columns:
            if (value := self.done[self.kind[state], column]) >= 0 and self.values[value] != END:
                found.append(self.values[value])
            state = self.next_state[state, column]
        return found

    @functools.cached_property
    def _columns(self) -> dict[int, int]:
        return {int(token): column for column, token in enumerate(self.token_ids)}


Word = tuple[int, ...]


class Builder:
    """Builds states from last to first; a state is an index into `transitions`."""

    def __init__(self, eos_id: int):
        self.transitions: list[dict[int, int]] = []
        self._known: dict[tuple[Word, frozenset[tuple[int, int]]], int] = {}
        self.eos_id = eos_id
        self.end = len(self.transitions)
        self.transitions.append({eos_id: self.end})

    def state(self, transitions: dict[int, int], written: Word = ()) -> int:
        """Returns the state with these transitions and this written part of its field."""
        key = written, frozenset(transitions.items())
        if key not in self._known:
            self._known[key] = len(self.transitions)
            self.transitions.append(transitions)
        return self._known[key]

    def words(self, words: Iterable[Word], then: int, written: Word | None = ()) -> int:
        """Returns the state that reads any of `words`, each followed by the language of the state `then`.

        `written` is the part of the field before the words; None if states need not distinguish it.

        Raises:
            ValueError: after some word, the next token could belong either to a longer word or to the next field.
        """
        return self.branch(dict.fromkeys(words, then), written)

    def branch(self, following: Mapping[Word, int], written: Word | None = ()) -> int:
        """Returns the state that reads any of these words, each followed by the language of a state of its own.

        Raises:
            ValueError: see `words`.
        """
        transitions: dict[int, int] = {}
        by_first: dict[int, dict[Word, int]] = {}
        for word, then in following.items():
            if word:
                by_first.setdefault(word[0], {})[word[1:]] = then
            else:
                transitions = dict(self.transitions[then])
        for token, rest in by_first.items():
            if token in transitions:
                raise RequestError(f"Token {token} may both go on with a field and begin the next one")
            ended = rest.get(()) if len(rest) == 1 else None
            transitions[token] = (
                ended if ended is not None else self.branch(rest, None if written is None else (*written, token))
            )
        return self.state(transitions, written or ())

    def either(self, *states: int) -> int:
        """Returns the state that reads the language of any of the given states; their first tokens must differ."""
        merged: dict[int, int] = {}
        for state in states:
            for token, following in self.transitions[state].items():
                if merged.setdefault(token, following) != following:
                    raise RequestError(f"Token {token} begins two different continuations")
        return self.state(merged)

    def table(self, start: int, turns: Sequence[FieldSlot], *, also: Sequence[tuple[int, int]] = ()) -> TokenAutomaton:
        """Returns the automaton of the state `start`, without states that cannot be reached.

        Args:
            start: the state before the first token.
            turns: the fields of the longest text, in order; or all fields of all texts, with their numbers.
            also: pairs of states. The first is before a field that may be left out; it also reads what the second does.
        """
        # A field may only begin inside a longer word: after the "1" of "10", or of "1" and a next field.
        reached = {start, *(turn.begin for turn in turns)}
        waiting = list(reached)
        while waiting:
            new = set(self.transitions[waiting.pop()].values()) - reached
            reached |= new
            waiting += new
        # States were made from last to first, so in this order every state leads to later ones; the end is last.
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
        meanings = _Meanings(
            next_state,
            [
                turn._replace(
                    begin=row[turn.begin],
                    then=row[turn.then],
                    words={v: tuple(column[t] for t in w) for v, w in turn.words.items()},
                )
                for turn in turns
            ],
            [(row[state], row[other]) for state, other in also],
        )
        return TokenAutomaton(
            token_ids=np.array(used, np.int32),
            next_state=next_state,
            start=row[start],
            max_tokens=longest[start],
            max_atoms=sum(turn.field == "element" for turn in turns),
            **meanings.tables(),
        )


class FieldSlot(NamedTuple):
    """Field of a text: the states before and after it, its name, its possible words by value, and its number.

    The number is the index among all fields by default.
    """

    begin: int
    then: int
    field: str
    words: Mapping[str, Word]
    number: int | None = None


class _TokenMeaning(NamedTuple):
    """Meaning of a column in a state: the range of values still possible after it, and the value it completes or -1."""

    first: int
    last: int
    done: int


class _Meanings:
    """Meanings of all columns in all states."""

    def __init__(
        self, next_state: Int[np.ndarray, "n_states k"], turns: Sequence[FieldSlot], also: Sequence[tuple[int, int]]
    ):
        turns = [t if t.number is not None else t._replace(number=i) for i, t in enumerate(turns)]
        self._next_state = next_state
        self._number: dict[tuple[str, str], int] = {}
        words = {turn.field: turn.words for turn in turns}
        for field in filter(words.__contains__, FIELDS):
            told_apart = len(words[field]) <= MOST_VALUES
            for value in sorted(words[field], key=words[field].__getitem__) if told_apart else [ANY]:
                self._number[field, value] = len(self._number)
            if field == "element":
                self._number[field, END] = len(self._number)
        self._meanings: dict[int, dict[int, _TokenMeaning]] = {}
        self._turn = np.full(len(next_state), 1 + max((turn.number or 0 for turn in turns), default=-1), np.int32)
        self._shared: list[tuple[int, int]] = []  # states with a column that ends a field and begins the next
        for turn in turns:
            number = turn.number or 0
            if (turn.field, ANY) in self._number:
                self._pass(turn, number)
                continue
            self._spell(turn.begin, number, {self._number[turn.field, v]: word for v, word in turn.words.items()})
            for column in np.flatnonzero(next_state[turn.begin] == len(next_state) - 1).tolist():  # EOS
                end = self._number["element", END]
                self._meanings[turn.begin][column] = _TokenMeaning(end, end + 1, end)
        for state, other in also:
            for column, meaning in self._meanings.get(other, {}).items():
                self._meanings[state].setdefault(column, meaning)
        self._separate = all(
            self._is_separator(turn, column)
            for state, column in set(self._shared)
            for turn in turns
            if next_state[turn.begin, column] == next_state[state, column]  # the field that the column begins
        )

    def tables(self) -> dict[str, Any]:
        """Returns the attributes of a `TokenAutomaton` that describe the meaning of tokens."""
        kinds: dict[frozenset[tuple[int, _TokenMeaning]], int] = {}
        kind = np.zeros(len(self._next_state), np.int32)
        for state, meaning in self._meanings.items():
            kind[state] = kinds.setdefault(frozenset(meaning.items()), len(kinds) + 1)
        shape = len(kinds) + 1, self._next_state.shape[1]
        first, last, done = np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.full(shape, -1, np.int32)
        last[0] = len(self._number)
        for meanings, number in kinds.items():
            for column, (begin, end, completed) in meanings:
                first[number, column], last[number, column], done[number, column] = begin, end, completed
        names = [field for field, _ in self._number]
        fields = {
            name: slice(names.index(name), names.index(name) + names.count(name)) for name in dict.fromkeys(names)
        }
        values = tuple(value for _, value in self._number)
        return dict(
            values=values,
            fields=fields,
            turn=self._turn,
            kind=kind,
            first=first,
            last=last,
            done=done,
            separate=self._separate,
        )

    def _spell(self, state: int, turn: int, words: Mapping[int, Word]) -> None:
        """Records the meanings of the columns of a state in which the rest of one of `words` is written."""
        self._turn[state] = turn
        by_first: dict[int, dict[int, Word]] = {}
        for value, (first, *rest) in words.items():
            by_first.setdefault(first, {})[value] = tuple(rest)
        meaning = self._meanings.setdefault(state, {})
        for column, following in by_first.items():
            low, high = min(following), max(following) + 1
            if len(following) != high - low:
                raise ValueError("Values that begin alike are not neighbours in the order of their spellings")
            longer = {value: rest for value, rest in following.items() if rest}
            done = next((value for value, rest in following.items() if not rest), -1)
            meaning[column] = _TokenMeaning(low, high, -1 if longer else done)
            if longer:
                after = int(self._next_state[state, column])
                self._spell(after, turn, longer)
                if done >= 0:
                    # "N" and "Np" may begin with the same token; only the next token shows that it was the shorter one.
                    for other in np.flatnonzero(self._next_state[after] != FORBIDDEN).tolist():
                        if other not in self._meanings[after]:
                            self._meanings[after][other] = _TokenMeaning(done, done + 1, done)
                            self._shared.append((after, other))

    def _pass(self, turn: FieldSlot, number: int) -> None:
        """Records the meanings of the columns of a field whose values are not distinguished."""
        value = self._number[turn.field, ANY]
        waiting = [turn.begin]
        while waiting:
            state = waiting.pop()
            self._turn[state], self._meanings[state] = number, {}
            for column in np.flatnonzero(self._next_state[state] != FORBIDDEN).tolist():
                after = int(self._next_state[state, column])
                done = after == turn.then
                self._meanings[state][column] = _TokenMeaning(value, value + 1, value if done else -1)
                if not done and after not in self._meanings:
                    waiting.append(after)

    def _is_separator(self, turn: FieldSlot, column: int) -> bool:
        """Whether a column begins every value of a field, and so does not restrict its value."""
        meaning = self._meanings[turn.begin].get(column)
        values = sum(field == turn.field and value != END for field, value in self._number)
        return meaning is not None and meaning.last - meaning.first == values
