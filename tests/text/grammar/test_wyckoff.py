"""The automaton of texts by symmetry."""

import csv
import gzip

import pytest

from crystal_jax.structures import Entry, parse
from crystal_jax.symmetry.crystal import SymmetricCrystal
from crystal_jax.text.formats.wyckoff import WyckoffFormat
from crystal_jax.text.grammar.wyckoff import FIRST_ORBIT, ORBIT_FIELDS, wyckoff_automaton
from crystal_jax.text.tokenizer import load_tokenizer
from tests.text.formats.test_wyckoff import OLIVINE
from tests.text.test_wyckoff_tokenizer import TRICLINIC

NAMES = ("wyckoff", "character", "llama2")


@pytest.fixture(scope="module", params=NAMES)
def tokenizer(request):
    if request.param == "llama2":
        return load_tokenizer("llama2", request.getfixturevalue("shared") / "tokenizer/tokenizer.model")
    return load_tokenizer(request.param)


@pytest.fixture(scope="module")
def automaton(tokenizer):
    return wyckoff_automaton(tokenizer, WyckoffFormat(), max_orbits=60)


def completion(tokenizer, text):
    """Returns the ids of a text after its composition line."""
    head = tokenizer.encode(text.partition("\n")[0])
    ids = tokenizer.encode(text)
    if tokenizer.name == "wyckoff":  # a line alone is no crystal, and its numbers are characters
        return ids[2 * sum(c.isupper() for c in text.partition("\n")[0]) :]
    assert ids[: len(head)] == head
    return ids[len(head) :]


def fields(text):
    return text.partition("\n")[2].replace("\n", " ").split(" ")


@pytest.mark.parametrize(
    "text",
    [OLIVINE, TRICLINIC, "Na1Cl1\n225\n5.6\nNa 4a\nCl 4b", "Pd1\n1\n2.0 3.0 4.0\n9 10 104\nPd 1a 0.00 0.50 0.10"],
)
def test_texts_are_accepted_and_read(tokenizer, automaton, text):
    ids = completion(tokenizer, text)
    assert automaton.accepts([*ids, tokenizer.eos_id])
    column = {int(token): i for i, token in enumerate(automaton.token_ids)}
    assert automaton.read([column[token] for token in ids]) == fields(text)


def test_a_guide_can_stop_before_each_field(tokenizer, automaton):
    """Numbers of fields grow along a text, and no token belongs to two fields."""
    assert automaton.separate
    column = {int(token): i for i, token in enumerate(automaton.token_ids)}
    state, turns = automaton.start, []
    for token in completion(tokenizer, OLIVINE):
        turns.append(int(automaton.turn[state]))
        state = int(automaton.next_state[state, column[token]])
    assert turns == sorted(turns)
    elements = [FIRST_ORBIT + ORBIT_FIELDS * orbit for orbit in range(6)]
    positions = [number + 1 for number in elements]
    assert {0, 1, 2, 3, *positions} <= set(turns)
    assert not {4, 5, 6} & set(turns)  # an orthorhombic crystal has no angles


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("62\n", "231\n"), ("62\n", "0\n"), ("10.3 6.0 4.7", "10.3 6.0"), ("10.3 6.0 4.7", "10.3 6.0 4.7\n90"),
        ("Li 4a", "Li a"), ("Li 4a", "Li 5a"), ("0.17 0.05 0.28", "0.17 0.05 0.28 0.10"), ("0.97", "1.00"),
        ("\nLi 4a", ""), ("10.3", "100.3"),
    ],
)  # fmt: skip
def test_other_texts_are_not(automaton, old, new):
    """By characters, which can spell them."""
    tokenizer = load_tokenizer("character")
    automaton = wyckoff_automaton(tokenizer, WyckoffFormat())
    text = OLIVINE.replace(old, new)
    if old == "\nLi 4a":
        text = text[: text.index("\nFe")]
    assert not automaton.accepts([*tokenizer.encode(text.partition("\n")[2]), tokenizer.eos_id])


def test_real_crystals_are_accepted(tokenizer, automaton, shared):
    with gzip.open(shared / "data/mp52_open/val.csv.gz", "rt") as file:
        rows = list(csv.DictReader(file))[::20]
    for row in rows:
        text = WyckoffFormat().encode(SymmetricCrystal.from_structure(parse(Entry("", row["cif"])).structure))
        assert automaton.accepts([*completion(tokenizer, text), tokenizer.eos_id]), text
