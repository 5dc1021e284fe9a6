import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystal_jax.errors import UserError
from crystal_jax.text.crystal_text import TextFormat
from crystal_jax.text.prompts import generation_prompt, infill_prompt, mask_element
from crystal_jax.text.tokenizer import encode_example, load_tokenizer
from tests.text.test_crystal_text import HALITE, crystals

COMPACT = ["atom_coordinate", "character"]
PRINTABLE = st.text(alphabet="\n" + "".join(map(chr, range(32, 127))))


@pytest.mark.parametrize("name", COMPACT)
@pytest.mark.parametrize("version", ["plain", "composition_first"])
@given(crystal=crystals())
def test_crystals_and_prompts_round_trip(name, version, crystal):
    tokenizer = load_tokenizer(name)
    text = TextFormat(version=version).encode(crystal)
    for whole in (
        text,
        generation_prompt({"pretty_formula": "LiFePO4", "band_gap": 3.6911, "spacegroup.number": 62}) + text,
        infill_prompt(mask_element(text, crystal.symbols[0])) + crystal.symbols[0],
    ):
        assert tokenizer.decode(tokenizer.encode(whole)) == whole


@pytest.mark.parametrize("name", COMPACT)
@given(text=PRINTABLE)
def test_any_printable_text_round_trips(name, text):
    tokenizer = load_tokenizer(name)
    assert tokenizer.decode([tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id]) == text


def test_atom_coordinate_spends_four_tokens_on_an_atom():
    tokenizer = load_tokenizer("atom_coordinate")
    assert len(tokenizer.encode(HALITE)) == 6 + 4 * 2
    assert len(tokenizer.encode(generation_prompt())) == 2


def test_an_angle_and_a_digit_of_a_prompt_are_different_tokens():
    tokenizer = load_tokenizer("atom_coordinate")
    five_degrees = tokenizer.spell(" ", "5")
    assert tokenizer.encode("5") != list(five_degrees)


def test_values_outside_of_the_vocabulary_are_named():
    with pytest.raises(ValueError, match=r"'75\.3' is not in the vocabulary"):
        load_tokenizer("atom_coordinate").encode(HALITE.replace("5.6", "75.3", 1))


def test_unknown_names_and_missing_files(tmp_path):
    with pytest.raises(UserError, match="no tokenizer 'lamma2'; there are: atom_coordinate"):
        load_tokenizer("lamma2")
    with pytest.raises(UserError, match="llama2 tokenizer needs a file"):
        load_tokenizer("llama2")
    with pytest.raises(UserError, match=r"no tokenizer at .*nowhere"):
        load_tokenizer("llama2", tmp_path / "nowhere")
    (tmp_path / "bad.model").write_bytes(b"not a model")
    with pytest.raises(UserError, match="not a SentencePiece model"):
        load_tokenizer("llama2", tmp_path / "bad.model")


def test_llama2_spells_a_crystal_as_published(shared):
    """Ids read off LLaMA-2's own tokenizer for this text (a space, a digit, a point and a newline are tokens)."""
    tokenizer = load_tokenizer("llama2", shared / "tokenizer/tokenizer.model")
    text = "5.6 4.0 5.7\n90 90 90\nTe\n0.25 0.50 0.73"
    expected = [
        29871,
        29945,
        29889,
        29953,
        29871,
        29946,
        29889,
        29900,
        29871,
        29945,
        29889,
        29955,
        13,
        29929,
        29900,
    ]
    expected += [
        29871,
        29929,
        29900,
        29871,
        29929,
        29900,
        13,
        7141,
        13,
        29900,
        29889,
        29906,
        29945,
        29871,
        29900,
    ]
    expected += [29889, 29945, 29900, 29871, 29900, 29889, 29955, 29941]
    assert tokenizer.encode(text) == expected
    assert tokenizer.decode([1, *expected, 2]) == text


@given(crystal=crystals())
def test_crystal_tokens_round_trip_among_llamas_pieces(shared, crystal):
    tokenizer = load_tokenizer("llama2_crystal", shared / "tokenizer/tokenizer.model")
    text = TextFormat().encode(crystal)
    for whole in (
        text,
        generation_prompt({"pretty_formula": "LiFePO4", "band_gap": 3.6911}) + text,
        infill_prompt(mask_element(text, crystal.symbols[0])) + crystal.symbols[0],
    ):
        assert tokenizer.decode([tokenizer.bos_id, *tokenizer.encode(whole), tokenizer.eos_id]) == whole


def test_crystal_tokens_are_added_and_prompts_are_shared(shared):
    path = shared / "tokenizer/tokenizer.model"
    own, pieces = load_tokenizer("llama2_crystal", path), load_tokenizer("llama2", path)
    prompt = generation_prompt({"pretty_formula": "NaCl"})
    head, body = encode_example(own, prompt, HALITE)
    assert head == pieces.encode(prompt)
    assert len(body) == 6 + 4 * 2
    assert min(body) >= pieces.vocab_size
    assert max(body) < own.vocab_size == 32_000 + 590 + 179 + 101 + 103 + 1
    infilled = encode_example(own, infill_prompt(HALITE.replace("Na", "[MASK]")), "Na")[1]
    assert infilled == list(own.spell("", "Na"))


@pytest.mark.parametrize("name", [*COMPACT, "llama2", "llama2_crystal"])
def test_prompt_and_completion_are_split_where_they_meet(name, request):
    path = request.getfixturevalue("shared") / "tokenizer/tokenizer.model" if "llama2" in name else None
    tokenizer = load_tokenizer(name, path)
    for prompt, completion in ((generation_prompt(), HALITE), (infill_prompt(HALITE), "Mg")):
        head, body = encode_example(tokenizer, prompt, completion)
        assert tokenizer.decode(head + body) == prompt + completion
        assert body[0] != head[-1]
        # The tokens of the completion do not depend on which prompt went before.
        assert body == encode_example(tokenizer, generation_prompt({"pretty_formula": "NaCl"}), completion)[1]


@given(text=PRINTABLE)
def test_a_tokenizer_json_round_trips(bpe, text):
    tokenizer = load_tokenizer("huggingface", bpe / "tokenizer.json")
    assert (tokenizer.bos_id, tokenizer.eos_id) == (0, 1)
    assert tokenizer.decode([tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id]) == text


def test_a_bpe_spells_fields_as_they_stand_in_a_crystal(bpe):
    tokenizer = load_tokenizer("huggingface", bpe / "tokenizer.json")
    crystal = "5.6 5.6 5.6\n90 90 90\nMg\n0.00 0.50 0.73"
    fields = [("", "5.6"), (" ", "5.6"), (" ", "5.6"), ("\n", "90"), (" ", "90"), (" ", "90")]
    fields += [("\n", "Mg"), ("\n", "0.00"), (" ", "0.50"), (" ", "0.73")]
    spelled = [i for separator, value in fields for i in tokenizer.spell(separator, value)]
    assert spelled == tokenizer.encode("\n" + crystal)[len(tokenizer.encode("\n")) :]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "no .*tokenizer_config.json; a tokenizer is"),
        ("{}", "states no eos_token"),
        ('{"eos_token": "<nothing>"}', "lacks the special token '<nothing>'"),
        ("{", "is no tokenizer"),
    ],
)
def test_special_tokens_must_be_stated_and_exist(bpe, tmp_path, config, message):
    shutil.copy(bpe / "tokenizer.json", tmp_path)
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(config)
    with pytest.raises(UserError, match=message):
        load_tokenizer("huggingface", tmp_path / "tokenizer.json")
