import pytest

from crystal_jax.text.fields import CLASSES, COORDINATE, ELEMENT, LATTICE, token_classes
from crystal_jax.text.tokenizer import load_tokenizer

CRYSTAL = "5.6 4.0 12.5\n90 90 120\nTe\n0.25 0.50 0.73\nC\n0.00 0.00 0.10"


def test_one_token_a_field():
    classes = token_classes(load_tokenizer("atom_coordinate"), CRYSTAL)
    assert classes == [LATTICE] * 6 + ([ELEMENT] + [COORDINATE] * 3) * 2


def test_one_token_a_character():
    """A digit is of its field, and so is the separator before it."""
    tokenizer = load_tokenizer("character")
    classes = token_classes(tokenizer, CRYSTAL)
    letters = "".join("olecx"[kind] for kind in classes)
    assert letters == "l" * len("5.6 4.0 12.5\n90 90 120") + "e" * 3 + "c" * 15 + "e" * 2 + "c" * 15
    assert len(classes) == len(tokenizer.encode(CRYSTAL))
    assert CLASSES[LATTICE] == "lattice"


def test_an_infilled_symbol_is_an_element():
    assert token_classes(load_tokenizer("character"), "Te") == [ELEMENT, ELEMENT]


def test_a_text_that_is_not_written_field_by_field_is_refused():
    with pytest.raises(ValueError, match=r"not in the vocabulary|field by field"):
        token_classes(load_tokenizer("atom_coordinate"), "5.6 4.0\n\n90 90")
