import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from crystal_jax.checkpoint.inference import InferenceModel
from crystal_jax.checkpoint.models import Trained
from crystal_jax.config import MeshConfig, from_config_dict
from crystal_jax.infill.replacements import propose
from crystal_jax.score.likelihood import Likelihood
from crystal_jax.sharding import make_mesh
from crystal_jax.text.crystal_text import ELEMENTS
from crystal_jax.text.prompts import generation_prompt, infill_prompt, mask_element
from crystal_jax.text.tokenizer import load_tokenizer
from tests.experiments import TINY, build, logits, training_config
from tests.text.test_crystal_text import HALITE

PROMPT = infill_prompt(mask_element(HALITE, "Na"))


def tiny(tokenizer, prompt, *, batch_size=40):
    """A likelihood under random weights, and the model."""
    sizes = dict(embed_dim=16, mlp_dim=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4)
    model = build(dataclasses.replace(TINY, vocab_size=tokenizer.vocab_size, **sizes))
    # As initialised, every token is about as probable as any other, and an error could hide.
    model.embedding[...] = 8 * model.embedding[...]
    experiment = from_config_dict(training_config(""), vocab_size=tokenizer.vocab_size)
    mesh = make_mesh(MeshConfig(data=-1, fsdp=1, tensor=1))
    trained = Trained(*nnx.split(model), experiment, 0, "untrained")
    inference = InferenceModel(Path(), trained, tokenizer, mesh)
    return Likelihood(inference, prompt=prompt, batch_size=batch_size), model


def product(model, tokenizer, prompt, text):
    """log p(text, EOS | prompt): one probability after another, each from a forward of its own length."""
    ids = [tokenizer.bos_id, *tokenizer.encode(prompt + text), tokenizer.eos_id]
    begin = 1 + len(tokenizer.encode(prompt))
    scores = jax.nn.log_softmax(logits(model, jnp.array([ids]))[0], axis=-1)
    return float(sum(scores[place - 1, ids[place]] for place in range(begin, len(ids))))


@pytest.mark.parametrize("name", ["atom_coordinate", "llama2"])
def test_elements_have_the_probability_of_their_tokens_and_sum_to_one(name, request):
    path = request.getfixturevalue("shared") / "tokenizer/tokenizer.model" if name == "llama2" else None
    tokenizer = load_tokenizer(name, path)
    likelihood, model = tiny(tokenizer, PROMPT)
    spellings = [likelihood.encode(symbol) for symbol in ELEMENTS]
    lengths = {len(ids) for ids in spellings}
    assert lengths == ({2} if name == "atom_coordinate" else {2, 3})  # EOS included
    log_probs = dict(zip(ELEMENTS, likelihood(spellings), strict=True))
    asked = ("H", "Fe", "Na", "Lr", "Pr", "Yb")
    expected = [product(model, tokenizer, PROMPT, symbol) for symbol in asked]
    np.testing.assert_allclose([log_probs[symbol] for symbol in asked], expected, atol=1e-4)
    assert np.ptp(expected) > 0.1
    rows = propose(log_probs, (), ELEMENTS, temperature=1.0)
    assert sum(row.probability for row in rows) == pytest.approx(1, abs=1e-9)
    ratio = np.exp(expected[1] - expected[0])
    probability = {row.symbol: row.probability for row in rows}
    assert probability["Fe"] / probability["H"] == pytest.approx(ratio, rel=1e-3)


def test_crystals_of_any_length_and_order_keep_their_scores():
    tokenizer = load_tokenizer("character")
    likelihood, model = tiny(tokenizer, generation_prompt(), batch_size=4)
    head, *atoms = HALITE.split("\n")[:2], *HALITE.split("\n")[2:]
    texts = ["\n".join([*head, *atoms[: 2 * n]]) for n in (2, 1, 2, 1, 2)] + [HALITE]
    scores = likelihood([likelihood.encode(text) for text in texts])
    expected = [product(model, tokenizer, generation_prompt(), text) for text in texts]
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    assert likelihood([]) == []
