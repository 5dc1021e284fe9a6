"""Token ids of our LLaMA-2 tokenizer equal Hugging Face's on everything that this project writes."""

import numpy as np
import pytest

transformers = pytest.importorskip("transformers")

from crystal_jax.text.crystal_text import ELEMENTS, TextFormat
from crystal_jax.text.prompts import MASK, draw_conditions, generation_prompt, infill_prompt, mask_element
from crystal_jax.text.tokenizer import encode_example, load_tokenizer
from tests.real_crystals import translated_crystals
from tests.text.test_crystal_text import HALITE


@pytest.fixture(scope="module")
def pair(shared):
    """Ours and theirs. Theirs, asked for a text, adds no special tokens here; the reference adds BOS and EOS."""
    ours = load_tokenizer("llama2", shared / "tokenizer/tokenizer.model")
    theirs = transformers.LlamaTokenizer.from_pretrained(shared / "tokenizer")
    return ours, lambda texts: theirs(texts, add_special_tokens=False).input_ids


def test_every_crystal_of_mp20_open(shared, pair):
    ours, theirs = pair
    rng = np.random.default_rng(0)
    texts = []
    for crystal in translated_crystals(shared):
        text = TextFormat().encode(crystal)
        if rng.random() < 1 / 3:
            texts.append(infill_prompt(mask_element(text, crystal.symbols[0])) + crystal.symbols[0])
        else:
            texts.append(generation_prompt() + text)
    assert len(texts) == 15_491
    for text, ids in zip(texts, theirs(texts), strict=True):
        assert ours.encode(text) == ids


def test_every_prompt(pair):
    ours, theirs = pair
    rng = np.random.default_rng(1)
    prompts = [generation_prompt()]
    for _ in range(500):
        properties = {
            "pretty_formula": "".join(rng.choice(ELEMENTS, 3)) + "4",
            "formation_energy_per_atom": rng.normal(),
            "band_gap": abs(rng.normal()),
            "e_above_hull": abs(rng.normal()) / 10,
            "spacegroup.number": int(rng.integers(1, 231)),
        }
        prompts.append(generation_prompt(draw_conditions(properties, rng)))
    assert len(set(prompts)) > 300
    for prompt, ids in zip(prompts, theirs(prompts), strict=True):
        assert ours.encode(prompt) == ids


def test_every_element_and_the_mask(pair):
    ours, theirs = pair
    lines = [f"90 90 90\n{symbol}\n0.25 0.50 0.73" for symbol in (*ELEMENTS, MASK)]
    for line, ids in zip(lines, theirs(lines), strict=True):
        assert ours.encode(line) == ids
    two_pieces = [symbol for symbol in ELEMENTS[:94] if len(ours.spell("\n", symbol)) == 3]  # newline, two letters
    assert len(two_pieces) == 44


def test_examples_begin_and_end_as_the_references_do(pair):
    """The reference's ids are BOS, the text's, EOS; a prompt and its completion are tokenised as one text."""
    ours, theirs = pair
    head, body = encode_example(ours, generation_prompt(), HALITE)
    assert head + body == theirs([generation_prompt() + HALITE])[0]
    assert (ours.bos_id, ours.eos_id) == (1, 2)
