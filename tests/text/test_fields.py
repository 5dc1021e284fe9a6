import pytest

from crystal_jax.text.crystal_text import TextFormat
from crystal_jax.text.fields import CLASSES, COMPOSITION, COORDINATE, ELEMENT, LATTICE, token_classes
from crystal_jax.text.prompts import generation_prompt
from crystal_jax.text.tokenizer import encode_example, load_tokenizer

CRYSTAL = "5.6 4.0 12.5\n90 90 120\nTe\n0.25 0.50 0.73\nC\n0.00 0.00 0.10"


def classes_of(tokenizer, completion, version="plain"):
    _, body = encode_example(tokenizer, generation_prompt(), completion)
    classes = token_classes(tokenizer, TextFormat(version=version), completion, len(body))
    assert len(classes) == len(body)
    return classes


def test_one_token_a_field():
    classes = classes_of(load_tokenizer("atom_coordinate"), CRYSTAL)
    assert classes == [LATTICE] * 6 + ([ELEMENT] + [COORDINATE] * 3) * 2


def test_one_token_a_character():
    """A digit is of its field, and so is the separator before it."""
    tokenizer = load_tokenizer("character")
    classes = classes_of(tokenizer, CRYSTAL)
    letters = "".join("olecxf"[kind] for kind in classes)
    assert letters == "l" * len("5.6 4.0 12.5\n90 90 120") + "e" * 3 + "c" * 15 + "e" * 2 + "c" * 15
    assert len(classes) == len(tokenizer.encode(CRYSTAL))
    assert CLASSES[LATTICE] == "lattice"


def test_llama_writes_digit_by_digit(shared):
    """A space before a number is a token of its own; a newline is one too."""
    tokenizer = load_tokenizer("llama2", shared / "tokenizer/tokenizer.model")
    letters = "".join("olecxf"[kind] for kind in classes_of(tokenizer, CRYSTAL))
    # 5.6 has three tokens, " 4.0" four, " 12.5" five.
    assert letters == "l" * (3 + 4 + 5 + 3 + 3 + 4) + ("e" * 2 + "c" * 15) + ("e" * 2 + "c" * 15)


def test_the_words_of_a_cif_are_of_the_field_after_them():
    text = TextFormat(version="cif").encode(TextFormat().decode(CRYSTAL))
    letters = "".join("olecxf"[kind] for kind in classes_of(load_tokenizer("character"), text, "cif"))
    name, sites = len("data_C1Te1"), text.index("\n_symmetry")
    assert letters[:name] == "f" * name
    assert set(letters[name:sites]) == {"l"}
    assert letters[sites:].startswith("e" * text[sites:].index(" 0.25"))
    assert letters.endswith("c" * 15 + "e" * 2 + "c" * 15)


def test_a_composition_is_a_part_of_its_own():
    text = TextFormat(version="composition_first").encode(TextFormat().decode(CRYSTAL))
    classes = classes_of(load_tokenizer("atom_coordinate"), text, "composition_first")
    assert classes == [COMPOSITION] * 4 + [LATTICE] * 6 + ([ELEMENT] + [COORDINATE] * 3) * 2
    with pytest.raises(ValueError, match="does not write a crystal field by field"):
        token_classes(
            load_tokenizer("atom_coordinate"), TextFormat(version="composition_first"), text, len(classes) - 4
        )


def test_an_infilled_symbol_is_an_element():
    assert classes_of(load_tokenizer("character"), "Te") == [ELEMENT, ELEMENT]


def test_a_text_that_is_not_written_field_by_field_is_refused():
    with pytest.raises(ValueError, match=r"not in the vocabulary|expected three numbers"):
        classes_of(load_tokenizer("atom_coordinate"), "5.6 4.0\n\n90 90")
