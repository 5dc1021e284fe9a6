"""Builds the automaton of crystal texts over a tokenizer's ids.

`TextFormat.decode` parses every text that this automaton accepts. The automaton accepts every text that
`TextFormat.encode` writes (within the limits on lengths and number of atoms) in its canonical tokenisation, and no
other tokenisation. LLaMA-2 could spell "Te" as one piece or as two, but a model has only seen the first. So the
automaton is built from the tokenizer's own ids of each field, not from bytes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from crystal_jax.errors import RequestError
from crystal_jax.text.crystal_text import ELEMENTS, TextFormat
from crystal_jax.text.grammar.automaton import MOST_VALUES, Builder, FieldSlot, TokenAutomaton, Word
from crystal_jax.text.layout import LATTICE_WORDS
from crystal_jax.text.tokenizer import Tokenizer

LENGTHS = tuple(f"{i / 10:.1f}" for i in range(10, 1000))  # Å
ANGLES = tuple(str(i) for i in range(1, 180))  # degrees


def crystal_automaton(
    tokenizer: Tokenizer,
    text_format: TextFormat,
    *,
    max_atoms: int = 20,
    elements: Sequence[str] = ELEMENTS,
) -> TokenAutomaton:
    """Builds the automaton of crystal texts from the lattice on, followed by EOS.

    The composition line, if the format has one, has its own grammar (text/grammar/composition.py), because an automaton
    could not remember the composition until the sites.

    Args:
        tokenizer: tokenizer that spells the fields.
        text_format: text format, which decides the possible coordinates.
        max_atoms: largest number of atoms in the cell; the smallest is 1.
        elements: element symbols that may occur.

    Raises:
        RequestError: there are no elements, an element is unknown, `max_atoms` is below 1, or the tokenizer cannot
            spell the format.
    """
    if unknown := set(elements) - set(ELEMENTS):
        raise RequestError(f"Not elements: {', '.join(sorted(unknown))}")
    if not elements:
        raise RequestError("A crystal needs at least one allowed element")
    if max_atoms < 1:
        raise RequestError(f"max_atoms must be at least 1, not {max_atoms}")

    layout = text_format.layout
    values = {"length": LENGTHS, "angle": ANGLES, "element": elements}
    values |= dict.fromkeys(("xy", "z"), text_format.coordinate_values())

    @functools.cache
    def spell(separator: str, field: str) -> dict[str, Word]:
        return spellings(tokenizer, separator, values[field])

    builder = Builder(tokenizer.eos_id)
    turns: list[FieldSlot] = []

    def before(state: int, field: str, separator: str) -> int:
        """Returns the state before a field that is followed by `state`."""
        words = spell(separator, field)
        begin = builder.words(words.values(), state, () if len(words) <= MOST_VALUES else None)
        turns.append(FieldSlot(begin, state, field, words))
        return begin

    finish = builder.state({tokenizer.eos_id: builder.end})
    state = finish
    x, y, z = layout.coordinates
    for atoms_before in reversed(range(max_atoms)):
        symbol = layout.later if atoms_before else layout.first
        for field, separator in ("z", z), ("xy", y), ("xy", x), ("element", symbol):
            state = before(state, field, separator)
        if atoms_before:  # one atom is required; the crystal may end before each further atom
            state = builder.either(finish, state)
            turns[-1] = turns[-1]._replace(begin=state)
    for place in reversed(range(LATTICE_WORDS)):
        state = before(state, "length" if place < 3 else "angle", layout.separator(place))
    return builder.table(state, turns[::-1])


def spellings(tokenizer: Tokenizer, separator: str, values: Sequence[str]) -> dict[str, Word]:
    """Returns the ids of a field's values after a separator; values outside the vocabulary are left out.

    Raises:
        RequestError: the tokenizer can spell none of them.
    """
    spelled = {value: word for value in values if (word := spelling(tokenizer, separator, value))}
    if not spelled:
        raise RequestError(f"The {tokenizer.name} tokenizer cannot spell {values[0]!r} after {separator!r}")
    return spelled


def spelling(tokenizer: Tokenizer, separator: str, value: str) -> Word | None:
    """Returns the ids of a field's value after a separator.

    Returns `None` for a value outside a compact vocabulary: it can be neither trained on nor sampled.
    """
    try:
        return tokenizer.spell(separator, value)
    except RequestError:
        return None
