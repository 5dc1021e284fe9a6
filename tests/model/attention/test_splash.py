"""Splash kernels, interpreted, against the einsums of attention."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding

from crystal_jax.config import ExecutionConfig, MeshConfig, from_config_dict
from crystal_jax.errors import UserError
from crystal_jax.model import transformer
from crystal_jax.model.attention.dot_product import attend
from crystal_jax.model.attention.splash import attend_segments
from crystal_jax.sharding import make_mesh, on_mesh, target_platform
from tests.experiments import SCANNED, TINY, build, training_config

HEADS, WIDTH, TOKENS = 4, 16, 256
# Crystals that begin and end within a tile, one longer than a tile, and padding.
ENDS = ((40, 100, 250), (30, 256), (256,), (200, 201, 202))


def rows_of(ends):
    """Segment numbers from 1; 0 is what no segment takes."""
    rows = np.zeros((len(ends), TOKENS), np.int32)
    for row, places in zip(rows, ends, strict=True):
        for number, (begin, end) in enumerate(zip((0, *places), places, strict=False), start=1):
            row[begin:end] = number
    return jnp.asarray(rows)


SEGMENTS = rows_of(ENDS)


def einsums(q, keys, values, segments):
    mask = jnp.tril(jnp.ones((TOKENS, TOKENS), bool)) & (segments[:, :, None] == segments[:, None])
    return attend(q, keys, values, mask[:, None])


def splash(*arrays):
    return attend_segments(*arrays, interpret=True)


def values_and_gradients(function, key_heads, mesh=None):
    q, weights = (jax.random.normal(jax.random.key(i), (len(ENDS), TOKENS, HEADS, WIDTH)) for i in range(2))
    keys, values = (jax.random.normal(jax.random.key(2 + i), (len(ENDS), key_heads, TOKENS, WIDTH)) for i in range(2))

    def objective(*arrays):
        mixed = function(*arrays, SEGMENTS)
        return (mixed * weights).sum(), mixed

    differentiated = jax.value_and_grad(objective, argnums=(0, 1, 2), has_aux=True)
    if mesh is None:
        (_, mixed), gradients = jax.jit(differentiated)(q, keys, values)
    else:

        def on_the_mesh(*arrays):
            with on_mesh(mesh):
                return differentiated(*arrays)

        everywhere = NamedSharding(mesh, jax.P())
        (_, mixed), gradients = jax.jit(on_the_mesh, in_shardings=everywhere)(q, keys, values)
    return mixed, *gradients


@pytest.mark.parametrize(
    ("key_heads", "sizes"), [(4, None), (2, None), (2, "1,2,2")], ids=["heads", "groups", "groups on a mesh"]
)
def test_splash_equals_the_einsums_and_so_do_its_gradients(key_heads, sizes):
    mesh = make_mesh(MeshConfig.parse(sizes)) if sizes else None
    found, expected = values_and_gradients(splash, key_heads, mesh), values_and_gradients(einsums, key_heads)
    for ours, theirs in zip(found, expected, strict=True):
        assert jnp.isfinite(ours).all()  # padding is at the end of two rows
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def losses(execution, tokens, segments):
    graph, params = nnx.split(build(execution=execution))
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)

    def loss(params):
        return (nnx.merge(graph, params)(tokens, positions, segments) ** 2).mean()

    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize("keep_products", [False, True])
def test_a_model_on_a_tpu_reads_packed_rows_by_splash(monkeypatch, keep_products):
    tokens = jax.random.randint(jax.random.key(0), (2, TOKENS), 0, TINY.vocab_size)
    expected = losses(SCANNED, tokens, SEGMENTS[:2])
    called = []

    def interpreted(*arrays):
        called.append(arrays[0].shape)
        return splash(*arrays)

    monkeypatch.setattr(transformer, "target_platform", lambda: "tpu")
    monkeypatch.setattr(transformer, "attend_segments", interpreted)
    execution = dataclasses.replace(SCANNED, attention="splash", keep_products=keep_products)
    found = losses(execution, tokens, SEGMENTS[:2])
    assert called
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5), found, expected)
    called.clear()
    losses(execution, tokens[:, :100], SEGMENTS[:2, :100])  # no multiple of 128: einsums
    assert not called


def test_elsewhere_it_is_einsums():
    assert target_platform() == "cpu"
    tokens = jax.random.randint(jax.random.key(0), (1, 128), 0, TINY.vocab_size)
    segments = jnp.ones_like(tokens)
    found, expected = (
        losses(dataclasses.replace(SCANNED, attention=name), tokens, segments) for name in ("splash", "einsum")
    )
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_kept_products_change_neither_values_nor_gradients():
    tokens = jax.random.randint(jax.random.key(0), (2, 20), 0, TINY.vocab_size)
    segments = jnp.ones_like(tokens)
    kept, recomputed = (
        losses(dataclasses.replace(SCANNED, keep_products=keep), tokens, segments) for keep in (True, False)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5), kept, recomputed)


def test_bad_choices_are_named():
    with pytest.raises(ValueError, match=r"execution\.attention='flash' is none of einsum, splash, cudnn"):
        ExecutionConfig(scan_layers=True, remat=True, attention="flash")
    with pytest.raises(ValueError, match=r"execution\.keep_products needs execution\.remat"):
        ExecutionConfig(scan_layers=True, remat=False, keep_products=True)
    config = training_config("", execution={"attention": "splash"}, data={"seq_len": 200})
    with pytest.raises(UserError, match=r"rows of a multiple of 128 tokens, not data\.seq_len=200"):
        from_config_dict(config, vocab_size=98)


def test_rows_that_do_not_divide_are_named():
    q = jax.ShapeDtypeStruct((3, TOKENS, HEADS, WIDTH), jnp.float32)
    keys = jax.ShapeDtypeStruct((3, HEADS, TOKENS, WIDTH), jnp.float32)
    with (
        on_mesh(make_mesh(MeshConfig(data=2, fsdp=2, tensor=1), jax.devices()[:4])),
        pytest.raises(UserError, match="the 3 rows of a micro-batch do not divide over the 4 devices"),
    ):
        jax.eval_shape(splash, q, keys, keys, jax.ShapeDtypeStruct((3, TOKENS), jnp.int32))
