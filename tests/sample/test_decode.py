import dataclasses
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from crystal_jax.model.llama import Llama
from crystal_jax.sample.decode import Sampler, make_generate
from crystal_jax.text.crystal_text import TextFormat
from crystal_jax.text.grammar import crystal_automaton
from crystal_jax.text.prompts import generation_prompt
from crystal_jax.text.tokenizer import encode_example, load_tokenizer
from tests.experiments import TINY, build, logits

KEYS = jax.random.split(jax.random.key(0), 4000)


def test_greedy_is_the_largest_and_cold_approaches_it():
    scores = jnp.tile(jnp.array([0.0, 2.0, 1.0, -jnp.inf]), (4000, 1))
    assert (Sampler(temperature=0.0, top_p=1.0).draw(KEYS, scores) == 1).all()
    assert (Sampler(temperature=0.01, top_p=1.0).draw(KEYS, scores) == 1).all()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_follow_the_tempered_distribution(temperature):
    scores = jnp.array([0.0, 2.0, 1.0, -jnp.inf])
    drawn = Sampler(temperature=temperature, top_p=1.0).draw(KEYS, jnp.tile(scores, (4000, 1)))
    frequencies = np.bincount(drawn, minlength=4) / 4000
    np.testing.assert_allclose(frequencies, jax.nn.softmax(scores / temperature), atol=0.03)
    assert frequencies[3] == 0


def test_top_p_keeps_the_smallest_set_that_reaches_the_share():
    probabilities = jnp.array([0.1, 0.5, 0.25, 0.15])
    scores = jnp.tile(jnp.log(probabilities), (4000, 1))
    for top_p, kept in ((0.4, [1]), (0.6, [1, 2]), (0.75, [1, 2]), (0.8, [1, 2, 3]), (0.99, [0, 1, 2, 3])):
        drawn = np.asarray(Sampler(temperature=1.0, top_p=top_p).draw(KEYS, scores))
        assert sorted(set(drawn.tolist())) == kept
        expected = np.where(np.isin(np.arange(4), kept), probabilities, 0)
        np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 4000, expected / expected.sum(), atol=0.03)


@pytest.mark.parametrize(("temperature", "top_p"), [(-1.0, 1.0), (float("nan"), 1.0), (1.0, 0.0), (1.0, 1.1)])
def test_impossible_settings(temperature, top_p):
    with pytest.raises(ValueError, match="must be"):
        Sampler(temperature=temperature, top_p=top_p)


def untrained(tokenizer) -> Llama:
    """One layer and small: what is tested is the grammar, not the model."""
    sizes = dict(embed_dim=16, mlp_dim=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4)
    return build(dataclasses.replace(TINY, vocab_size=tokenizer.vocab_size, **sizes))


@pytest.mark.parametrize(("name", "number"), [("atom_coordinate", 10_000), ("character", 1_000), ("llama2", 1_000)])
def test_every_text_of_an_untrained_model_can_be_read(name, number, request):
    """Nothing but the grammar keeps these in order."""
    path = request.getfixturevalue("shared") / "tokenizer/tokenizer.model" if name == "llama2" else None
    tokenizer, text_format, prompt = load_tokenizer(name, path), TextFormat(), generation_prompt()
    head, _ = encode_example(tokenizer, prompt, "0")
    automaton = crystal_automaton(tokenizer, text_format, max_atoms=20)
    graph, params = nnx.split(untrained(tokenizer))
    generate = make_generate(graph, automaton, Sampler(temperature=1.0, top_p=1.0))
    prompt_ids = jnp.array([tokenizer.bos_id, *head])
    # Unlike elsewhere in the tests, here running takes longer than compiling.
    generate = generate.lower(params, prompt_ids, KEYS[:1000]).compile({"xla_backend_optimization_level": 3})
    sizes = Counter()
    for seed in range(number // 1000):
        drawn = generate(params, prompt_ids, jax.random.split(jax.random.key(seed), 1000))
        for ids in drawn.tokens.tolist():
            text = tokenizer.decode([*head, *ids[: ids.index(tokenizer.eos_id)]]).removeprefix(prompt)
            sizes[len(text_format.decode(text).symbols)] += 1
    assert sizes.total() == number
    assert {1, 2, 3} <= set(sizes) <= set(range(1, 21))


def test_reported_log_probability_is_that_of_the_full_forward():
    """The cache, the chosen columns and the masks must add up to the plain model under the grammar."""
    tokenizer = load_tokenizer("atom_coordinate")
    automaton = crystal_automaton(tokenizer, TextFormat(), max_atoms=3)
    model = untrained(tokenizer)
    graph, params = nnx.split(model)
    prompt = jnp.array([tokenizer.bos_id, *tokenizer.encode(generation_prompt())])
    drawn = make_generate(graph, automaton, Sampler(temperature=0.7, top_p=0.9))(params, prompt, KEYS[:8])
    scores = logits(model, jnp.concatenate([jnp.tile(prompt, (8, 1)), drawn.tokens], axis=1))
    scores = np.asarray(scores[:, len(prompt) - 1 : -1][..., automaton.token_ids])
    column = {int(t): c for c, t in enumerate(automaton.token_ids)}
    for row in range(8):
        state, total = automaton.start, 0.0
        for place, token in enumerate(drawn.tokens[row].tolist()):
            if state == automaton.end:
                break
            masked = np.where(automaton.allowed[state], scores[row, place], -np.inf)
            total += float(jax.nn.log_softmax(masked)[column[token]])
            state = int(automaton.next_state[state, column[token]])
        assert total == pytest.approx(float(drawn.log_prob[row]), abs=1e-3)


def test_a_sample_depends_on_its_key_alone():
    tokenizer = load_tokenizer("atom_coordinate")
    automaton = crystal_automaton(tokenizer, TextFormat(), max_atoms=3)
    graph, params = nnx.split(untrained(tokenizer))
    generate = make_generate(graph, automaton, Sampler(temperature=1.0, top_p=1.0))
    prompt = jnp.array([tokenizer.bos_id])
    together, alone = generate(params, prompt, KEYS[:8]), generate(params, prompt, KEYS[5:6])
    np.testing.assert_array_equal(together.tokens[5], alone.tokens[0])
