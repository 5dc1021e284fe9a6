"""One token per field of texts by symmetry, and back."""

import csv
import gzip

import pytest

from crystal_jax.errors import RequestError
from crystal_jax.structures import Entry, parse
from crystal_jax.symmetry.crystal import SymmetricCrystal
from crystal_jax.text.formats.wyckoff import WyckoffFormat
from crystal_jax.text.prompts import generation_prompt
from crystal_jax.text.tokenizer import encode_example, load_tokenizer
from tests.text.formats.test_wyckoff import OLIVINE

TRICLINIC = "Li1O2\n1\n3.0 4.0 5.0\n80 90 100\nLi 1a 0.00 0.00 0.00\nO 1a 0.10 0.20 0.30\nO 1a 0.50 0.60 0.70"


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("wyckoff")


@pytest.mark.parametrize("text", [OLIVINE, TRICLINIC, "Na1Cl1\n225\n5.6\nNa 4a\nCl 4b", "225\n5.6\nNa 4a\nCl 4b"])
def test_one_token_per_field(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    fields = text.replace("\n", " ").split(" ")
    composition = fields[0] if fields[0][0].isalpha() else ""
    counted = sum(c.isupper() for c in composition)
    assert len(ids) == len(fields) - bool(composition) + 2 * counted


def test_prompts(tokenizer):
    prompt = generation_prompt({"pretty_formula": "LiFePO4", "spacegroup.number": 62})
    head, body = encode_example(tokenizer, prompt, OLIVINE)
    assert tokenizer.decode([*head, *body]) == prompt + OLIVINE
    assert body == tokenizer.encode(OLIVINE)


def test_the_spelling_of_fields_is_that_of_texts(tokenizer):
    """The grammar is built from these."""
    spelled = [
        *[tokenizer.spell("", word) for word in ("Na", "1", "Cl", "1")],
        *[tokenizer.spell("\n", word) for word in ("225", "5.6", "Na")],
        *[tokenizer.spell(separator, word) for separator, word in ((" ", "4a"), ("\n", "Cl"), (" ", "4b"))],
    ]
    assert [token for word in spelled for token in word] == tokenizer.encode("Na1Cl1\n225\n5.6\nNa 4a\nCl 4b")
    with pytest.raises(RequestError, match=r"'0\.5' is not in the vocabulary"):
        tokenizer.spell(" ", "0.5")


def test_real_crystals(tokenizer, shared):
    with gzip.open(shared / "data/mp52_open/val.csv.gz", "rt") as file:
        rows = list(csv.DictReader(file))[::10]
    for row in rows:
        text = WyckoffFormat().encode(SymmetricCrystal.from_structure(parse(Entry("", row["cif"])).structure))
        assert tokenizer.decode(tokenizer.encode(text)) == text
