"""The language of compositions in the first line of a text."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystal_jax.text.crystal_text import ELEMENTS, TextFormat
from crystal_jax.text.grammar.composition import CompositionGrammar, ParserState
from crystal_jax.text.grammar.composition_constraint import MAX_ELEMENTS, CompositionConstraint
from crystal_jax.text.layout import composition_line, in_order
from crystal_jax.text.tokenizer import encode_example, load_tokenizer
from tests.text.grammar.test_crystal import HALITE
from tests.text.languages import walk

V3 = TextFormat(version="composition_first")


@pytest.fixture(scope="module", params=["atom_coordinate", "character", "llama2", "llama2_crystal", "cif"])
def spelled(request):
    """A tokenizer, a format, and its first lines."""
    name, text_format = (request.param, V3) if request.param != "cif" else ("llama2", TextFormat(version="cif"))
    file = request.getfixturevalue("shared") / "tokenizer/tokenizer.model" if "llama2" in name else None
    tokenizer = load_tokenizer(name, file)
    return tokenizer, text_format, CompositionGrammar(tokenizer, text_format)


def parts_of(counts):
    return tuple((symbol, counts[symbol]) for symbol in in_order(counts))


def columns_of(tokenizer, text_format, language, counts):
    """A line as training spells it, before a lattice."""
    crystal = TextFormat().decode(HALITE)
    line = text_format.layout.first_line(symbol for symbol, n in counts.items() for _ in range(n))
    _, ids = encode_example(tokenizer, "\n", line + text_format.layout.join(TextFormat().encode(crystal).split()))
    stop = next(i for i, token in enumerate(ids) if token in language.ends)
    return [language.token_ids.tolist().index(token) for token in ids[:stop]]


COUNTS = st.dictionaries(st.sampled_from(ELEMENTS), st.integers(1, 6), min_size=1, max_size=3)


@given(counts=COUNTS)
def test_what_training_writes_may_be_drawn(spelled, counts):
    tokenizer, text_format, language = spelled
    columns = columns_of(tokenizer, text_format, language, counts)
    place = walk(language, columns, language.anything)
    assert language.composition(place) == parts_of(counts)
    assert len(columns) <= language.max_tokens


def test_what_may_be_drawn_is_what_training_writes(spelled):
    """And nothing that is drawn says more atoms than there may be."""
    tokenizer, text_format, language = spelled
    rng = np.random.default_rng(0)
    wanted = CompositionConstraint(min_atoms=2, max_atoms=7)
    seen = set()
    for _ in range(200):
        place, columns = ParserState(), []
        while (column := rng.choice(np.flatnonzero(language.open(place, wanted)))) != language.end:
            place = language.step(place, column)
            columns.append(column)
        parts = language.composition(place)
        seen.add(parts)
        assert 2 <= sum(n for _, n in parts) <= 7
        assert len(parts) <= MAX_ELEMENTS
        assert columns == columns_of(tokenizer, text_format, language, dict(parts))
    assert len(seen) > 100


def every_line(language, wanted, place=None):
    """All compositions that may be drawn."""
    place = place or ParserState()
    for column in np.flatnonzero(language.open(place, wanted)).tolist():
        if column == language.end:
            yield language.composition(place)
        else:
            yield from every_line(language, wanted, language.step(place, column))


def test_limits_are_exact(spelled):
    """Of three elements with at most three atoms, and nothing more; and of the multiples of a formula."""
    language = spelled[2]
    few = CompositionConstraint(elements=frozenset(["H", "N", "Np"]), min_atoms=2, max_atoms=3)
    expected = {
        parts_of({s: n for s, n in zip(("H", "N", "Np"), numbers, strict=True) if n})
        for numbers in np.ndindex(4, 4, 4)
        if 2 <= sum(numbers) <= 3
    }
    found = list(every_line(language, few))
    assert len(found) == len(expected)
    assert set(found) == expected
    water = CompositionConstraint(min_atoms=4, max_atoms=12, formula="H2O")
    assert set(every_line(language, water)) == {parts_of({"H": 2 * k, "O": k}) for k in (2, 3, 4)}


def test_only_formats_with_a_first_line_have_one():
    with pytest.raises(ValueError, match="'plain' have no first line"):
        CompositionGrammar(load_tokenizer("character"), TextFormat())


def test_a_line_is_in_the_order_of_a_formula():
    assert composition_line(["O", "Fe", "O", "Li"]) == "Li1Fe1O2"
    assert composition_line(["Ne", "H"]) == "H1Ne1"  # noble gases have no electronegativity
