"""Builds the automaton of texts by symmetry (text/formats/wyckoff.py) over a tokenizer's ids.

The automaton knows the crystal system, which decides the numbers of the lattice. It does not know the space group.
Which positions a group has, how many coordinates follow one, and which atoms are still missing is decided by a guide
(sample/constraints/symmetry.py): an automaton with a state for each of these would have millions. This one accepts up
to three coordinates after each position, and after each orbit another one or the end.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from crystal_jax.errors import RequestError
from crystal_jax.symmetry.lattices import lattice_parameters
from crystal_jax.symmetry.operations import NUM_GROUPS
from crystal_jax.symmetry.positions import position_symbols
from crystal_jax.text.crystal_text import ELEMENTS
from crystal_jax.text.formats.wyckoff import WyckoffFormat
from crystal_jax.text.grammar.automaton import Builder, FieldSlot, TokenAutomaton, Word
from crystal_jax.text.grammar.crystal import ANGLES, LENGTHS, spellings
from crystal_jax.text.tokenizer import Tokenizer

FIRST_ORBIT = 7  # number of the first orbit's element: the space group is 0, and a, b, c, α, β, γ are 1 to 6
ORBIT_FIELDS = 5  # element, position, and up to three coordinates
_NUM_LENGTHS, _NUM_COORDINATES = 3, 3


def wyckoff_automaton(
    tokenizer: Tokenizer, text_format: WyckoffFormat, *, max_orbits: int = 20, elements: Sequence[str] = ELEMENTS
) -> TokenAutomaton:
    """Builds the automaton of texts by symmetry from the space group on, followed by EOS.

    Args:
        tokenizer: tokenizer that spells the fields.
        text_format: text format, which decides the possible coordinates.
        max_orbits: largest number of orbits; the smallest is 1.
        elements: element symbols that may occur.

    Raises:
        RequestError: there are no elements, or the tokenizer cannot spell the format.
    """
    if not elements:
        raise RequestError("A crystal needs at least one allowed element")
    scale = 10**text_format.decimals
    values = {
        "length": LENGTHS,
        "angle": ANGLES,
        "spacegroup": tuple(map(str, range(1, NUM_GROUPS + 1))),
        "position": position_symbols(),
        "coordinate": tuple(f"{i / scale:.{text_format.decimals}f}" for i in range(scale)),
        "element": tuple(elements),
    }

    @functools.cache
    def spell(separator: str, field: str) -> dict[str, Word]:
        return spellings(tokenizer, separator, values[field])

    builder = Builder(tokenizer.eos_id)
    slots: list[FieldSlot] = []
    also: list[tuple[int, int]] = []

    def before(state: int, field: str, separator: str, number: int, *, or_else: int | None = None) -> int:
        """Returns the state before a field that is followed by `state`, or left out and followed by `or_else`."""
        words = spell(separator, field)
        begin = builder.words(words.values(), state)
        if or_else is not None:
            begin = builder.either(begin, or_else)
            also.append((begin, or_else))
        slots.append(FieldSlot(begin, state, field, words, number))
        return begin

    finish = builder.state({tokenizer.eos_id: builder.end})
    state = finish
    for orbit in reversed(range(max_orbits)):
        number, following = FIRST_ORBIT + ORBIT_FIELDS * orbit, state
        for place in reversed(range(_NUM_COORDINATES)):
            # The last orbit is followed by the end, which has no fields: nothing else may be left out before it.
            state = before(state, "coordinate", " ", number + 2 + place, or_else=following)
        state = before(state, "position", " ", number + 1)
        state = before(state, "element", "\n", number)
        if orbit:  # one orbit is required; the crystal may end before each further one
            state = builder.either(finish, state)
            slots[-1] = slots[-1]._replace(begin=state)
    first_orbit = state
    by_lattice = {
        lattice_parameters(number).free: lattice_parameters(number).free for number in range(1, NUM_GROUPS + 1)
    }
    after_group = {}
    for free in by_lattice:
        state = first_orbit
        for i, place in reversed(list(enumerate(free))):
            is_length = place < _NUM_LENGTHS
            starts_line = i == 0 or (not is_length and free[i - 1] < _NUM_LENGTHS)
            field, separator = "length" if is_length else "angle", "\n" if starts_line else " "
            state = before(state, field, separator, 1 + place)
        after_group[free] = state
    separator = "\n" if text_format.has_composition else ""
    groups = spell(separator, "spacegroup")
    begin = builder.branch({word: after_group[lattice_parameters(int(value)).free] for value, word in groups.items()})
    slots.append(FieldSlot(begin, first_orbit, "spacegroup", groups, 0))
    return builder.table(begin, slots[::-1], also=also)
