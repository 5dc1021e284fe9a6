"""Logits equal those of Hugging Face's `LlamaForCausalLM`, and would not if any field of the config were wrong."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("transformers")

from crystal_jax.config import LlamaConfig, MeshConfig
from crystal_jax.errors import UserError
from crystal_jax.model.attention.kv_cache import empty_cache
from crystal_jax.sharding import make_mesh
from tests.experiments import SCANNED, UNROLLED, extend, from_hugging_face, logits
from tests.parity.models import BASE, hugging_face, logits_of

IDS = np.random.default_rng(0).integers(0, BASE["vocab_size"], (2, 33))
ATOL = 1e-4


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A folder that transformers wrote, and its logits."""
    folder = tmp_path_factory.mktemp("reference")
    model = hugging_face()
    model.save_pretrained(folder)
    return folder, logits_of(model, IDS)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_key_value_heads": 6},
        {"num_key_value_heads": 1},
        {"tie_word_embeddings": True},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
        {"rms_norm_eps": 1e-6},
        {"head_dim": 16},
        {"num_hidden_layers": 1},
    ],
    ids=["multi-head", "multi-query", "tied", "theta", "eps", "wide-heads", "one-layer"],
)
def test_logits_equal_hugging_face(tmp_path, changes):
    model = hugging_face(**changes)
    model.save_pretrained(tmp_path)
    np.testing.assert_allclose(logits(from_hugging_face(tmp_path), jnp.asarray(IDS)), logits_of(model, IDS), atol=ATOL)


@pytest.mark.parametrize("execution", [UNROLLED, SCANNED], ids=["unrolled", "scanned"])
def test_grouped_queries_however_they_are_computed(reference, execution):
    folder, expected = reference
    np.testing.assert_allclose(
        logits(from_hugging_face(folder, execution=execution), jnp.asarray(IDS)), expected, atol=ATOL
    )


def test_on_a_mesh_that_splits_every_axis(reference):
    folder, expected = reference
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=2))
    np.testing.assert_allclose(logits(from_hugging_face(folder, mesh=mesh), jnp.asarray(IDS)), expected, atol=ATOL)


def test_new_rows_of_the_vocabulary_are_the_mean_of_the_old(reference):
    folder, expected = reference
    grown = logits(
        from_hugging_face(folder, rows=104, mesh=make_mesh(MeshConfig(data=1, fsdp=2, tensor=2))), jnp.asarray(IDS)
    )
    np.testing.assert_allclose(grown[..., :98], expected, atol=ATOL)
    means = np.repeat(expected.mean(axis=-1, keepdims=True), 6, axis=-1)
    np.testing.assert_allclose(grown[..., 98:], means, atol=ATOL)


# One wrong value for each field. Those of the second group change no shape of the stored tensors.
MISSHAPEN = dict(vocab_size=96, embed_dim=50, mlp_dim=81, num_layers=2, num_kv_heads=3, tie_embeddings=True)
UNNOTICED_BY_SHAPES = dict(
    rope_theta={"rope_theta": 600.0},
    norm_eps={"norm_eps": 4e-3},
    num_heads={"num_heads": 3, "num_kv_heads": 1, "head_dim": 16},
    head_dim={"num_heads": 12, "num_kv_heads": 4, "head_dim": 4},
    dtype={"dtype": "bfloat16"},
)


def test_every_field_is_falsified_below():
    assert MISSHAPEN.keys() | UNNOTICED_BY_SHAPES.keys() | {"architecture"} == {
        f.name for f in dataclasses.fields(LlamaConfig)
    }


def test_another_architecture_is_refused(reference):
    with pytest.raises(ValueError, match="in fields of llama's"):
        from_hugging_face(reference[0], architecture="gpt2")


@pytest.mark.parametrize("field", MISSHAPEN)
def test_a_field_that_contradicts_the_tensors_is_refused(reference, field):
    with pytest.raises(UserError, match="tensor"):
        from_hugging_face(reference[0], **{field: MISSHAPEN[field]})


@pytest.mark.parametrize("field", UNNOTICED_BY_SHAPES)
def test_a_wrong_field_makes_parity_fail(reference, field):
    folder, expected = reference
    found = logits(from_hugging_face(folder, **UNNOTICED_BY_SHAPES[field]), jnp.asarray(IDS))
    assert abs(found - expected).max() > 100 * ATOL


def test_cached_decoding_equals_hugging_face(reference):
    folder, expected = reference
    model = from_hugging_face(folder)
    cache = empty_cache(model.cfg, batch=2, capacity=IDS.shape[1])
    found = []
    for start, stop in ((0, 20), (20, 21), (21, 33)):
        part, cache = extend(model, jnp.asarray(IDS[:, start:stop]), jnp.full(2, stop - start), cache)
        found.append(part)
    np.testing.assert_allclose(np.concatenate(found, axis=1), expected, atol=ATOL)


def test_bfloat16_stays_near(reference):
    """With 8 bits of significand and weights this large, the typical error is a few per cent of the logits' spread."""
    folder, expected = reference
    found = np.asarray(logits(from_hugging_face(folder, dtype="bfloat16"), jnp.asarray(IDS)))
    assert np.sqrt(np.mean((found - expected) ** 2)) < 0.05 * expected.std()
