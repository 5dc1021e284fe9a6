import functools
import itertools
import re

import numpy as np
import pytest
from hypothesis import assume, given

from crystal_jax.text.crystal_text import CrystalTextError, TextFormat
from crystal_jax.text.grammar.automaton import FORBIDDEN, Builder
from crystal_jax.text.grammar.composition_constraint import MAX_ELEMENTS
from crystal_jax.text.grammar.crystal import crystal_automaton
from crystal_jax.text.tokenizer import encode_example, load_tokenizer
from tests.text.languages import Language
from tests.text.test_crystal_text import HALITE, crystals


def completion_ids(tokenizer, text):
    return [*encode_example(tokenizer, "\n", text)[1], tokenizer.eos_id]


NAMES = ("atom_coordinate", "character", "llama2", "llama2_crystal", "huggingface")
TWO_DECIMALS = [TextFormat(), TextFormat(version="paper"), TextFormat(version="composition_first")]
OTHERS = [
    TextFormat(decimals=1),
    TextFormat(decimals=3),
    TextFormat(version="cif"),
    TextFormat(version="cif", decimals=3),
]


@pytest.fixture(scope="session")
def load(request):
    """Tokenizers by name, with their files."""

    def load(name):
        if "llama2" in name:
            return load_tokenizer(name, request.getfixturevalue("shared") / "tokenizer/tokenizer.model")
        if name == "huggingface":
            return load_tokenizer("huggingface", request.getfixturevalue("bpe") / "tokenizer.json")
        return load_tokenizer(name)

    return load


@pytest.fixture(scope="session", params=NAMES)
def tokenizer(request, load):
    return load(request.param)


# Tokens that are whole numbers have two decimals.
SPELLED = [(name, one) for name in NAMES for one in TWO_DECIMALS]
SPELLED += [(name, one) for name in ("character", "llama2", "huggingface") for one in OTHERS]


@pytest.mark.parametrize(
    ("name", "text_format"), [pytest.param(name, f, id=f"{name}-{f.version}-{f.decimals}") for name, f in SPELLED]
)
def test_every_accepted_text_is_readable_and_canonical(load, name, text_format):
    tokenizer = load(name)
    language = Language(tokenizer, text_format, max_atoms=5)
    rng = np.random.default_rng(0)
    for _ in range(300):
        ids = language.random(rng)
        text = tokenizer.decode([*tokenizer.encode("\n"), *ids[:-1]])[1:]
        crystal = text_format.decode(text)
        assert 1 <= len(crystal.symbols) <= 5
        assert completion_ids(tokenizer, text) == ids
        assert len(ids) <= language.max_tokens
        assert language.accepts(ids)


@pytest.mark.parametrize(
    ("name", "text_format"),
    [
        ("atom_coordinate", TextFormat()),
        ("atom_coordinate", TextFormat(version="composition_first")),
        ("character", TextFormat()),
        ("character", TextFormat(decimals=3)),
        ("character", TextFormat(version="cif")),
    ],
)
@given(crystal=crystals(max_atoms=20))
def test_every_crystal_is_accepted(name, text_format, crystal):
    tokenizer, language = _language(name, text_format)
    assume(language.line is None or len(set(crystal.symbols)) <= MAX_ELEMENTS)
    ids = completion_ids(tokenizer, text_format.encode(crystal))
    assert language.accepts(ids)
    assert not language.accepts(ids[:-1])
    assert not language.accepts([*ids, tokenizer.eos_id])


@functools.cache
def _language(name, text_format):
    tokenizer = load_tokenizer(name)
    return tokenizer, Language(tokenizer, text_format)


def test_texts_with_any_one_token_changed_are_accepted_only_if_readable(tokenizer):
    text_format = TextFormat()
    automaton = crystal_automaton(tokenizer, text_format, max_atoms=2)
    ids = completion_ids(tokenizer, HALITE)
    assert automaton.accepts(ids)
    head = tokenizer.encode("\n")
    for place, other in itertools.product(range(len(ids) - 1), automaton.token_ids.tolist()):
        changed = [*ids[:place], other, *ids[place + 1 :]]
        if automaton.accepts(changed):
            text_format.decode(tokenizer.decode([*head, *changed[:-1]])[1:])
    # Dropping a token never leaves a crystal: all fields have a fixed number of tokens but the lattice numbers.
    with pytest.raises(CrystalTextError):
        text_format.decode(HALITE.rsplit("\n", 1)[0])
    assert not automaton.accepts(completion_ids(tokenizer, HALITE.rsplit("\n", 1)[0]))


def test_a_tokenizer_that_cannot_spell_a_format_is_refused():
    tokenizer = load_tokenizer("atom_coordinate")
    with pytest.raises(ValueError, match=r"atom_coordinate tokenizer cannot spell '0\.000' after ' '"):
        crystal_automaton(tokenizer, TextFormat(decimals=3))


def test_fields_are_read_after_the_name():
    tokenizer, text_format = load_tokenizer("character"), TextFormat(version="cif")
    automaton = crystal_automaton(tokenizer, text_format, max_atoms=2)
    ids = completion_ids(tokenizer, text_format.encode(TextFormat().decode(HALITE)))[len("data_Na1Cl1") :]
    assert automaton.read([automaton.token_ids.tolist().index(i) for i in ids]) == HALITE.split()
    assert automaton.separate


def test_limits_on_elements_and_atoms(tokenizer):
    automaton = crystal_automaton(tokenizer, TextFormat(), max_atoms=2, elements=["Na", "Cl", "C"])
    assert automaton.accepts(completion_ids(tokenizer, HALITE))
    assert not automaton.accepts(completion_ids(tokenizer, HALITE.replace("Na", "K")))
    assert not automaton.accepts(completion_ids(tokenizer, HALITE.replace("Na", "N")))
    assert not automaton.accepts(completion_ids(tokenizer, HALITE + "\nC\n0.25 0.25 0.25"))
    with pytest.raises(ValueError, match="Not elements: Xx"):
        crystal_automaton(tokenizer, TextFormat(), elements=["Xx"])
    with pytest.raises(ValueError, match="at least one allowed element"):
        crystal_automaton(tokenizer, TextFormat(), elements=[])
    with pytest.raises(ValueError, match="max_atoms must be at least 1"):
        crystal_automaton(tokenizer, TextFormat(), max_atoms=0)


def test_builder_equals_brute_force_on_a_small_alphabet():
    """Words of different lengths, one the beginning of another: (a | ab | ba)(c | cc)? over all strings up to 5."""
    builder = Builder(eos_id=9)
    finish = builder.state({9: builder.end})
    tail = builder.either(finish, builder.words([(3,), (3, 3)], finish))
    automaton = builder.table(builder.words([(1,), (1, 2), (2, 1)], tail), [])
    language = re.compile(r"(1|12|21)(3|33)?9")
    for length in range(1, 6):
        for ids in itertools.product([1, 2, 3, 9], repeat=length):
            assert automaton.accepts(ids) == bool(language.fullmatch("".join(map(str, ids)))), ids
    assert automaton.max_tokens == 5


def test_automaton_agrees_with_outlines_core_on_characters():
    """The field's regex-to-automaton library, given the same language as a regular expression."""
    outlines_core = pytest.importorskip("outlines_core")
    tokenizer = load_tokenizer("character")
    ours = crystal_automaton(tokenizer, TextFormat(), max_atoms=2, elements=["C", "Cl", "O"])
    length, angle, fraction = r"[1-9][0-9]?\.[0-9]", r"([1-9][0-9]?|1[0-7][0-9])", r"0\.[0-9][0-9]"
    three = [f"{x} {x} {x}" for x in (length, angle, fraction)]
    # A last byte that stands for EOS: the library loses what follows an accepting state before the end.
    pattern = rf"{three[0]}\n{three[1]}(\n(C|Cl|O)\n{three[2]}){{1,2}}" + "\x03"
    vocabulary = {tokenizer.decode([int(i)]).encode(): [int(i)] for i in ours.token_ids if i != tokenizer.eos_id}
    vocabulary[b"\x03"] = [tokenizer.eos_id]
    index = outlines_core.Index(pattern, outlines_core.Vocabulary(10_000, vocabulary))
    theirs, finals = index.get_transitions(), index.get_final_states()
    pairs, seen = [(ours.start, index.get_initial_state())], set()
    while pairs:
        mine, other = pairs.pop()
        if (mine, other) in seen:
            continue
        seen.add((mine, other))
        if mine == ours.end:
            assert other in finals
            continue
        allowed = {int(ours.token_ids[c]): int(s) for c, s in enumerate(ours.next_state[mine]) if s != FORBIDDEN}
        following = {t: s for t, s in theirs.get(other, {}).items() if t != 10_000}
        assert set(allowed) == set(following)
        pairs += [(allowed[t], following[t]) for t in allowed]
    assert len({mine for mine, _ in seen}) == len(ours.next_state)
