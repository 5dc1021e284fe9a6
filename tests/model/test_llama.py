import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import sentencepiece
from flax import nnx

from crystal_jax.config import MeshConfig
from crystal_jax.model.attention.dot_product import attend
from crystal_jax.model.attention.kv_cache import dequantize_kv, empty_cache, quantize_kv
from crystal_jax.sharding import LAYOUTS, make_mesh
from tests.experiments import LORA, SCANNED, TINY, UNROLLED, build, extend, from_hugging_face, logits


@pytest.fixture(scope="module")
def tokens():
    return jax.random.randint(jax.random.key(0), (2, 11), 0, TINY.vocab_size)


@pytest.fixture(scope="module")
def golden(shared):
    """Where real weights lie, some ids, and the logits that transformers gives for them."""
    folder = shared / "weights/stories260K"
    arrays = np.load(folder / "stories260K.hf_logits.npz")
    return folder, jnp.asarray(arrays["ids"]), arrays["logits"]


@pytest.mark.parametrize("execution", [UNROLLED, SCANNED])
def test_logits_equal_hugging_face_on_real_weights(golden, execution):
    folder, ids, expected = golden
    model = from_hugging_face(folder / "stories260K-hf", execution=execution)
    np.testing.assert_allclose(logits(model, ids), expected, atol=1e-4)


@pytest.mark.parametrize("change", [{"rope_theta": 5e3}, {"norm_eps": 1e-3}], ids=lambda change: next(iter(change)))
def test_the_golden_logits_would_notice_a_wrong_field(golden, change):
    folder, ids, expected = golden
    assert abs(logits(from_hugging_face(folder / "stories260K-hf", **change), ids) - expected).max() > 1e-3


def test_the_likeliest_story_of_real_weights(golden):
    """The beginning of the text that llama2.c's page on this model (doc/stories260K.md) prints for temperature 0."""
    folder, _, _ = golden
    model, ids = from_hugging_face(folder / "stories260K-hf"), [1]
    cache = empty_cache(model.cfg, batch=1, capacity=40)
    for _ in range(40):
        found, cache = extend(model, jnp.array([ids[-1:]]), jnp.ones(1, int), cache)
        ids.append(int(found[0, 0].argmax()))
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tok512.model"))
    assert pieces.decode(ids).startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    )


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS.values())
def test_cached_decoding_equals_the_full_forward(tokens, tied, layout):
    cfg = dataclasses.replace(TINY, tie_embeddings=tied)
    model = build(cfg, LORA)
    model.blocks.q.lora_b[...] = jax.random.normal(jax.random.key(1), model.blocks.q.lora_b.shape)
    expected = logits(model, tokens)
    cache, pieces = empty_cache(cfg, batch=2, capacity=15, layout=layout), []
    for begin, end in ((0, 4), (4, 5), (5, 9), (9, 10), (10, 11)):
        part = tokens[:, begin:end]
        piece, cache = extend(model, part, jnp.full(2, end - begin), cache)
        pieces.append(piece)
    np.testing.assert_allclose(jnp.concatenate(pieces, axis=1), expected, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS.values())
@pytest.mark.parametrize("mesh", [None, MeshConfig(data=2, fsdp=1, tensor=2)])
def test_in_8_bits_too_however_texts_are_cut(tokens, layout, mesh):
    """Token by token or in pieces, the same numbers are rounded; and rounding changes little."""
    model, exact = build(TINY), logits(build(TINY), tokens)
    cache, found = empty_cache(TINY, batch=2, capacity=15, layout=layout, coded=True), []
    assert {leaf.dtype.name for leaf in jax.tree.leaves((cache.keys, cache.values))} == {"int8", "float32"}
    for token in tokens.T:
        logit, cache = extend(model, token[:, None], jnp.ones(2, int), cache)
        found.append(logit)
    one_by_one = jnp.concatenate(found, axis=1)
    with contextlib.ExitStack() as stack:
        if mesh:
            stack.enter_context(jax.set_mesh(make_mesh(mesh)))
        in_pieces = read_in_pieces(model, tokens, layout, coded=True)
    np.testing.assert_allclose(in_pieces, one_by_one, atol=1e-4)
    error = np.sqrt(((one_by_one - exact) ** 2).mean()) / exact.std()
    assert 1e-4 < error < 0.02


def test_what_is_coded_is_within_half_a_step():
    wide = jax.random.normal(jax.random.key(0), (2, 3, 5, 8)).at[0, 0, 0].set(0)
    for axis in (-1, -2):
        coded = quantize_kv(wide, axis=axis)
        assert coded.scales.shape == tuple(n for i, n in enumerate(wide.shape) if i != wide.ndim + axis)
        error = jnp.abs(dequantize_kv(coded, "float32", axis=axis) - wide)
        assert (error <= jnp.expand_dims(coded.scales, axis) * 0.5001).all()
        assert jnp.abs(coded.codes).max() == 127


@pytest.mark.parametrize("layout", LAYOUTS.values())
@pytest.mark.parametrize("mesh", [None, MeshConfig(data=2, fsdp=1, tensor=2)])
def test_rows_are_read_at_places_of_their_own(tokens, layout, mesh):
    """Two rows that are read in pieces of other lengths; what is beyond a piece is overwritten by the next."""
    model, expected = build(TINY), logits(build(TINY), tokens)
    with contextlib.ExitStack() as stack:
        if mesh:
            stack.enter_context(jax.set_mesh(make_mesh(mesh)))
        found = read_in_pieces(model, tokens, layout)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def read_in_pieces(model, tokens, layout, *, coded=False):
    cache, found = empty_cache(model.cfg, batch=2, capacity=15, layout=layout, coded=coded), [[], []]
    place = [0, 0]
    for counts in ((4, 1), (0, 4), (3, 3), (4, 3)):
        chunk = jnp.stack([jnp.roll(tokens[row], -place[row])[:4] for row in range(2)])
        piece, cache = extend(model, chunk, jnp.array(counts), cache)
        for row, count in enumerate(counts):
            found[row].append(piece[row, :count])
            place[row] += count
    assert cache.length.tolist() == place == [11, 11]
    return jnp.stack([jnp.concatenate(row) for row in found])


def test_wanted_tokens_alone_are_read_as_among_others(tokens):
    model = build(TINY)
    cache = empty_cache(model.cfg, batch=2, capacity=15)
    _, cache = extend(model, tokens[:, :4], jnp.array([4, 2]), cache)
    count = jnp.array([1, 3])
    expected, grown = model.decode_forward(tokens[:, 4:8], count, cache)
    found, packed = model.decode_forward(tokens[:, 4:8], count, cache, budget=5)
    for row, wanted in enumerate(count):
        np.testing.assert_allclose(found[row, :wanted], expected[row, :wanted], atol=1e-5)
        length = packed.length[row]
        for one, other in zip(packed.keys, grown.keys, strict=True):
            np.testing.assert_allclose(one[row, ..., :length], other[row, ..., :length], atol=1e-5)
    assert packed.length.tolist() == grown.length.tolist() == [5, 5]


def test_unembedding_some_columns_equals_choosing_them_afterwards(tokens):
    for tied in (True, False):
        model = build(dataclasses.replace(TINY, tie_embeddings=tied))
        hidden = jax.random.normal(jax.random.key(0), (2, 3, TINY.embed_dim))
        columns = jnp.array([5, 90, 17])
        np.testing.assert_allclose(model.unembed(hidden, columns), model.unembed(hidden)[..., columns], atol=1e-6)


def test_no_token_sees_a_later_one_or_another_segment():
    graph, params = nnx.split(build())
    segments = jnp.array([[1, 1, 1, 2, 2, 2, 0]])
    positions = jnp.array([[0, 1, 2, 0, 1, 2, 0]])
    tokens = jnp.arange(7)[None]

    @jax.jit
    def sensitivity(place):
        """Gradient of one place's logits with regard to the embedding of each token (no token occurs twice)."""

        def output(embedding):
            changed = nnx.State({**params, "embedding": params["embedding"].replace(embedding)})
            return nnx.merge(graph, changed)(tokens, positions, segments)[0, place].sum()

        return jnp.abs(jax.grad(output)(params["embedding"][...])).max(axis=-1)

    for place, seen in ((1, {0, 1}), (2, {0, 1, 2}), (4, {3, 4})):
        assert set(np.flatnonzero(sensitivity(place)).tolist()) == seen


def test_packed_segments_equal_separate_rows(tokens):
    model = build()
    packed = tokens.reshape(1, -1)
    segments = jnp.repeat(jnp.array([[1, 2]]), 11, axis=1)
    positions = jnp.tile(jnp.arange(11), 2)[None]
    np.testing.assert_allclose(
        logits(model, packed, segments, positions).reshape(2, 11, -1), logits(model, tokens), atol=1e-5
    )


def test_scan_and_remat_change_neither_values_nor_gradients(tokens):
    def loss_and_gradient(execution):
        graph, params = nnx.split(build(execution=execution))
        return jax.jit(jax.value_and_grad(lambda p: (logits(nnx.merge(graph, p), tokens) ** 2).mean()))(params)

    plain, scanned = loss_and_gradient(UNROLLED), loss_and_gradient(SCANNED)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5), plain, scanned)


def test_attention_equals_jax_own():
    q, k, v = (jax.random.normal(jax.random.key(i), (2, 5, n, 8)) for i, n in enumerate((6, 2, 2)))
    mask = jnp.tril(jnp.ones((5, 5), bool))[None, None].repeat(2, axis=0)
    expected = jax.nn.dot_product_attention(q, k, v, mask=mask)
    np.testing.assert_allclose(attend(q, k.swapaxes(1, 2), v.swapaxes(1, 2), mask), expected, atol=1e-5)


def test_a_wrong_shape_or_type_is_refused(tokens):
    """Annotations of crystal_jax.model are checked in every test (pyproject.toml)."""
    q, keys = jnp.ones((2, 5, 6, 8)), jnp.ones((2, 2, 5, 8))
    mask = jnp.ones((2, 1, 5, 5), bool)
    assert attend(q, keys, keys, mask).shape == q.shape
    for wrong, name in (
        ((q, keys.swapaxes(1, 2), keys, mask), "values"),  # heads after positions
        ((q, keys, keys[..., :4], mask), "values"),
        ((q, keys, keys, mask[:, :, :4]), "mask"),
        ((q, keys, keys, mask.astype(jnp.float32)), "mask"),
    ):
        with pytest.raises(jaxtyping.TypeCheckError, match=f"typechecking parameter '{name}'"):
            attend(*wrong)
    model = build()
    with pytest.raises(jaxtyping.TypeCheckError, match="typechecking parameter 'segments'"):
        model(tokens, tokens, tokens[:1])


def test_bfloat16_stays_close(tokens):
    weights = nnx.state(build())
    half = build(dataclasses.replace(TINY, dtype="bfloat16"))
    full = build()
    nnx.update(half, weights)
    expected = logits(full, tokens)
    assert abs(logits(half, tokens) - expected).max() < 0.05 * abs(expected).max()
