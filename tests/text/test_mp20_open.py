"""Text, tokens and grammar on every crystal of `mp20_open`, translated at random."""

import numpy as np
import pytest

from crystal_jax.text.crystal_text import TextFormat
from crystal_jax.text.tokenizer import encode_example, load_tokenizer
from tests.real_crystals import translated_crystals
from tests.text.languages import Language


@pytest.fixture(scope="module")
def crystals(shared):
    return translated_crystals(shared)


@pytest.mark.parametrize("version", ["plain", "paper"])
def test_every_crystal_survives_its_text(crystals, version):
    text_format = TextFormat(version=version)
    for crystal in crystals:
        text = text_format.encode(crystal)
        back = text_format.decode(text)
        assert back.symbols == crystal.symbols
        assert abs(back.lengths - crystal.lengths).max() <= 0.05 + 1e-9
        assert abs(back.angles - crystal.angles).max() <= (0.5 if version == "plain" else 1)
        difference = np.abs(np.mod(back.frac_coords - crystal.frac_coords + 0.5, 1) - 0.5)
        assert difference.max() <= 0.005 + 1e-9
        if version == "plain":
            assert text_format.encode(back) == text


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("atom_coordinate", "plain"),
        ("character", "plain"),
        ("llama2", "plain"),
        ("llama2_crystal", "plain"),
        ("atom_coordinate", "composition_first"),
        ("character", "composition_first"),
        ("llama2", "composition_first"),
        ("llama2_crystal", "composition_first"),
        ("character", "cif"),
        ("llama2", "cif"),
    ],
)
def test_every_crystal_is_tokenised_and_accepted(crystals, name, version, shared):
    tokenizer = load_tokenizer(name, shared / "tokenizer/tokenizer.model")
    text_format, prompt = TextFormat(version=version), "\n"
    language = Language(tokenizer, text_format, max_atoms=20)
    for crystal in crystals:
        text = text_format.encode(crystal)
        head, body = encode_example(tokenizer, prompt, text)
        assert tokenizer.decode(head + body) == prompt + text
        assert language.accepts([*body, tokenizer.eos_id])
