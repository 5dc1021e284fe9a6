"""Where a GPU attends by cuDNN, and that the same call computes what the einsums do; cuDNN itself needs a GPU.

On a CPU the call is answered by JAX's own einsums, which take the same arguments (`benchmarks/gpu` compares cuDNN).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crystal_jax.model import transformer
from crystal_jax.model.attention.dot_product import attend_packed, fits_cudnn
from crystal_jax.model.attention.kv_cache import empty_cache
from tests.experiments import SCANNED, TINY, build, extend, logits
from tests.model.attention.test_splash import SEGMENTS, TOKENS, einsums, losses, values_and_gradients


@pytest.fixture
def calls(monkeypatch):
    """The keyword arguments of the calls that would go to cuDNN; the model believes that it is on a GPU."""
    seen, original = [], jax.nn.dot_product_attention

    def answered(*arrays, implementation=None, **options):
        if implementation == "cudnn":
            seen.append(options)
        return original(*arrays, **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", answered)
    monkeypatch.setattr(transformer, "target_platform", lambda: "gpu")
    monkeypatch.setattr(transformer, "fits_cudnn", lambda q: True)  # the tests' models are in float32
    monkeypatch.setattr("crystal_jax.model.attention.dot_product.fits_cudnn", lambda q: True)
    return seen


def packed(q, keys, values, segments):
    mask = jnp.tril(jnp.ones((TOKENS, TOKENS), bool)) & (segments[:, :, None] == segments[:, None])
    return attend_packed(q, keys.swapaxes(1, 2), values.swapaxes(1, 2), mask[:, None])


@pytest.mark.parametrize("key_heads", [4, 2])
def test_packed_rows_and_their_gradients(calls, key_heads):
    found, expected = values_and_gradients(packed, key_heads), values_and_gradients(einsums, key_heads)
    assert calls
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_a_model_trains_by_it_where_rows_are_even(calls):
    tokens = jax.random.randint(jax.random.key(0), (2, TOKENS), 0, TINY.vocab_size)
    expected = losses(SCANNED, tokens, SEGMENTS[:2])
    assert not calls
    execution = dataclasses.replace(SCANNED, attention="cudnn")
    found = losses(execution, tokens, SEGMENTS[:2])
    assert [set(call) for call in calls] == [{"mask", "is_causal"}] * len(calls)
    assert calls
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5), found, expected)
    calls.clear()
    losses(execution, tokens[:, :99], SEGMENTS[:2, :99])
    assert not calls


def test_decoding_tells_it_how_many_positions_are_filled(calls):
    """Rows of 4 and 2 tokens are read on by 3: no row sees more than 7 and 5 positions of 16."""
    model = build(execution=dataclasses.replace(SCANNED, attention="cudnn"))
    tokens = jax.random.randint(jax.random.key(1), (2, 11), 0, TINY.vocab_size)
    expected = logits(build(), tokens)
    cache = empty_cache(TINY, batch=2, capacity=16, layout="position_major")
    _, cache = model.decode_forward(tokens[:, :4], jnp.array([4, 2]), cache)
    assert len(calls) == TINY.num_layers
    calls.clear()
    found, _ = extend(model, jnp.stack([tokens[0, 4:7], tokens[1, 2:5]]), jnp.full(2, 3), cache)
    assert {call["key_value_seq_lengths"].shape for call in calls} == {(2,)}
    np.testing.assert_allclose(found[0], expected[0, 4:7], atol=1e-5)
    np.testing.assert_allclose(found[1], expected[1, 2:5], atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "width", "fits"),
    [("bfloat16", 128, True), ("float16", 64, True), ("float32", 64, False), ("bfloat16", 20, False)],
)
def test_what_cudnn_takes(dtype, width, fits):
    assert fits_cudnn(jnp.zeros((1, 2, 4, width), dtype)) == fits
