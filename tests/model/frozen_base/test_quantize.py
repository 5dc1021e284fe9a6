import dataclasses
from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from crystal_jax.config import UNQUANTIZED, MeshConfig, QuantizationConfig
from crystal_jax.errors import UserError
from crystal_jax.model.frozen_base.lora import split
from crystal_jax.model.frozen_base.memory import abstract_base, gigabytes
from crystal_jax.model.frozen_base.quantize import (
    NF4,
    dequantize,
    dequantize_state,
    is_quantized,
    quantize,
    quantize_state,
)
from crystal_jax.model.llama import Llama
from crystal_jax.model.presets import LLAMA2
from crystal_jax.sharding import make_mesh, tree_shardings
from tests.experiments import LORA, SCANNED, TINY, UNROLLED, build, logits

TOKENS = jnp.arange(14).reshape(2, 7)
INT8, INT4, NF = (QuantizationConfig(kind=kind, block_size=16) for kind in ("int8", "int4", "nf4"))
ALL = pytest.mark.parametrize("cfg", [INT8, INT4, NF], ids=lambda cfg: cfg.kind)


def normal(*shape, seed=0):
    return 0.02 * jax.random.normal(jax.random.key(seed), shape)


def round_trip(kernel, cfg, *, inputs=1):
    packed = quantize(jnp.asarray(kernel), cfg, inputs=inputs)
    return np.asarray(dequantize(packed, cfg, inputs=inputs, dtype=jnp.dtype(jnp.float32)))


def quantized_model(cfg, execution=UNROLLED, model=TINY):
    """A model with codes for kernels, drawn like `build(model, LORA)`."""

    def make():
        return nnx.split(Llama(model, LORA, execution, cfg, rngs=nnx.Rngs(jax.random.key(0))))

    graph, _ = nnx.eval_shape(make)
    return nnx.merge(graph, jax.jit(lambda: make()[1])())


def test_nf4_is_made_of_quantiles_of_the_normal_distribution():
    """As in QLoRA's section 3: zero, 7 values below and 8 above, the outermost as far out on both sides."""
    quantile = NormalDist().inv_cdf
    outermost = (1 - 1 / 32 + 1 - 1 / 30) / 2  # halfway between the outermost centres of 16 and of 15 equal parts
    below = [-quantile(p) for p in np.linspace(outermost, 0.5, 8)[:-1]]
    above = [quantile(p) for p in np.linspace(outermost, 0.5, 9)[:-1]]
    expected = np.array(sorted([*below, 0.0, *above])) / quantile(outermost)
    np.testing.assert_allclose(NF4, expected, atol=1e-6)


@pytest.mark.parametrize(("shape", "inputs"), [((48, 5, 3), 1), ((40, 7), 1), ((3, 20, 7), 2)])
@ALL
def test_no_weight_moves_further_than_half_a_step(cfg, shape, inputs):
    """The scale is that of the weight's own block, also in a last block that is shorter."""
    kernel = np.asarray(normal(*shape))
    got = round_trip(kernel, cfg, inputs=inputs)
    half = {"int8": 0.5 / 127.5, "int4": 0.5 / 7.5, "nf4": max(np.diff(NF4)) / 2}[cfg.kind]
    last, maxima = inputs - 1, np.empty_like(kernel)
    if cfg.kind == "int8":
        maxima[:] = abs(kernel).max(axis=tuple(range(inputs)))
    else:
        for begin in range(0, shape[last], cfg.block_size):
            block = (slice(None),) * last + (slice(begin, begin + cfg.block_size),)
            maxima[block] = abs(kernel[block]).max(axis=last, keepdims=True)
    assert (abs(kernel - got) <= half * maxima * (1 + 1e-5)).all()


@ALL
def test_shapes_and_types(cfg):
    packed = quantize(normal(48, 6, 8), cfg, inputs=1)
    heads = quantize(normal(6, 24, 48), cfg, inputs=2)
    if cfg.kind == "int8":
        expected = (48, 6, 8), (1, 6, 8), (6, 24, 48), (1, 1, 48), jnp.int8
    else:
        expected = (24, 6, 8), (3, 6, 8), (6, 12, 48), (6, 2, 48), jnp.uint8
    assert (packed.codes.shape, packed.scales.shape, heads.codes.shape, heads.scales.shape) == expected[:-1]
    assert packed.codes.dtype == expected[-1]
    assert packed.scales.dtype == jnp.float32


def test_neighbours_share_a_byte():
    column = jnp.array([[7.5], [-3.0], [0.0], [1.0]])
    assert quantize(column, INT4, inputs=1).codes.tolist() == [[(8 + 7) | (8 - 3) << 4], [8 | 9 << 4]]
    column = jnp.array([[2.0], [-2.0], [0.0], [0.16]])
    assert quantize(column, NF, inputs=1).codes.tolist() == [[15 | 0 << 4], [7 | 8 << 4]]


@ALL
def test_zeros_stay_zeros(cfg):
    assert not round_trip(jnp.zeros((32, 3)), cfg).any()


def test_a_weight_without_a_neighbour_is_refused():
    with pytest.raises(ValueError, match=r"axis 0 of a kernel of shape \(7, 4\) is odd"):
        quantize(jnp.ones((7, 4)), NF, inputs=1)


@ALL
def test_a_quantised_model_is_the_model_with_rounded_kernels(cfg):
    full = build(lora=LORA)
    graph, drawn = nnx.split(quantized_model(cfg))
    state = quantize_state(nnx.state(full), cfg)
    # Not to the last bit: the compiler fuses the draws of the two in other ways.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state, drawn)
    assert is_quantized(state)
    assert not is_quantized(nnx.state(full))
    rounded = dequantize_state(state, cfg)
    assert jax.tree.structure(rounded) == jax.tree.structure(nnx.state(full))
    expected = logits(nnx.merge(nnx.split(full)[0], rounded), TOKENS)
    np.testing.assert_allclose(logits(nnx.merge(graph, state), TOKENS), expected, atol=1e-5)
    scanned = nnx.merge(nnx.split(quantized_model(cfg, SCANNED))[0], state)
    np.testing.assert_allclose(logits(scanned, TOKENS), expected, atol=1e-5)
    assert 0 < abs(expected - logits(full, TOKENS)).max() < 0.6 * abs(expected).max()


@pytest.mark.parametrize(
    "execution", [UNROLLED, dataclasses.replace(SCANNED, remat=False)], ids=["unrolled", "scanned"]
)
def test_no_wide_kernel_is_kept_for_the_backward_pass(execution):
    graph, adapters, frozen = split(quantized_model(NF, execution), LORA)
    ones = jnp.ones_like(TOKENS)
    _, backward = jax.vjp(lambda adapters: nnx.merge(graph, adapters, frozen)(TOKENS, ones, ones), adapters)
    kept = {x.shape[-2:] for x in jax.tree.leaves(backward) if jnp.issubdtype(x.dtype, jnp.floating)}
    shapes = {(TINY.embed_dim, TINY.mlp_dim), (TINY.mlp_dim, TINY.embed_dim)}
    assert kept
    assert not kept & shapes


@ALL
def test_saved_and_restored_on_a_mesh(cfg, tmp_path):
    cfg = dataclasses.replace(cfg, block_size=8)
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=2))
    model = dataclasses.replace(TINY, vocab_size=98)
    _, adapters, frozen = split(build(model, LORA), LORA)
    like = split(quantized_model(cfg, model=model), LORA)[2]
    _, where = tree_shardings((adapters, like), mesh)
    ours = quantize_state(frozen, cfg, where=where)
    codes, scales = (ours["blocks"]["down"][name].get_value() for name in ("codes", "scales"))
    assert codes.sharding.shard_shape(codes.shape) == (3, codes.shape[1] // 2, 24)
    assert scales.sharding.shard_shape(scales.shape) == (3, 1 if cfg.kind == "int8" else 5, 24)
    with ocp.CheckpointManager(tmp_path / "base") as checkpoints:
        checkpoints.save(0, args=ocp.args.StandardSave(ours))
        checkpoints.wait_until_finished()
        restored = checkpoints.restore(0, args=ocp.args.StandardRestore(ours))
    assert jax.tree.map(lambda x: (x.dtype, x.sharding), ours) == jax.tree.map(
        lambda x: (x.dtype, x.sharding), restored
    )
    jax.tree.map(np.testing.assert_array_equal, ours, restored)


def test_blocks_that_do_not_divide_are_named():
    mesh = make_mesh(MeshConfig(data=1, fsdp=1, tensor=4))
    with pytest.raises(UserError, match=r"blocks/down/scales of shape \(3, 5, 48\): axis 1 .*quantize.block_size"):
        tree_shardings(nnx.state(quantized_model(NF)), mesh)


def test_donated_kernels_are_freed_and_others_are_not():
    full = nnx.state(build(lora=LORA))
    kernel = full["blocks"]["q"]["kernel"].get_value()
    quantize_state(full, INT8)
    assert not kernel.is_deleted()
    quantize_state(full, INT8, donate=True)
    assert kernel.is_deleted()
    assert not full["embedding"].get_value().is_deleted()


@pytest.mark.parametrize(
    ("size", "expected"),
    [("7b", (13.48, 7.01, 4.17, 3.97)), ("13b", (26.03, 13.35, 7.79, 7.40)), ("70b", (137.95, 69.53, 39.55, 37.42))],
)
def test_sizes_of_llama_2(size, expected):
    """bf16, int8, nf4, and nf4 in blocks of 128; the published sizes are 13.5, 26.1 and 138 GB in 16 bits."""
    ways = (
        UNQUANTIZED,
        QuantizationConfig(kind="int8"),
        QuantizationConfig(kind="nf4"),
        QuantizationConfig(kind="nf4", block_size=128),
    )
    got = [gigabytes(abstract_base(LLAMA2[size], way)) for way in ways]
    np.testing.assert_allclose(got, expected, atol=0.006)


@ALL
def test_equals_qwix(cfg):
    """Google's library rounds the same way, but for ties: it gives the most negative weight of a block code -128 or -8.

    Ours stay at -127 and -7, which is as far from the weight on its other side: one step apart.
    """
    qwix = pytest.importorskip("qwix")
    kernel = normal(128, 96)
    tiles = {} if cfg.kind == "int8" else {0: cfg.block_size}
    qtype = cfg.kind if cfg.kind == "nf4" else jnp.dtype(cfg.kind)
    theirs = qwix.quantize(kernel, qtype, channelwise_axes=[1], tiled_axes=tiles)
    values = np.asarray(qwix.dequantize(theirs))
    packed = quantize(kernel, cfg, inputs=1)
    ours = np.asarray(dequantize(packed, cfg, inputs=1, dtype=jnp.dtype(jnp.float32)))
    np.testing.assert_allclose(packed.scales, theirs.scale, rtol=1e-6)
    step = np.repeat(packed.scales, len(kernel) // len(packed.scales), axis=0)
    apart = abs(ours - values) > 1e-6 * step
    if cfg.kind == "nf4":
        assert not apart.any()
        return
    largest = {"int8": 127.5, "int4": 7.5}[cfg.kind]
    assert apart.mean() < 0.05
    np.testing.assert_allclose((ours - values)[apart], step[apart], rtol=1e-5)
    np.testing.assert_allclose(np.asarray(kernel)[apart], -largest * step[apart], rtol=1e-5)
