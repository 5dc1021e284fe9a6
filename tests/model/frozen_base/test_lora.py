import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from crystal_jax.config import PROJECTIONS, LoraConfig, QuantizationConfig
from crystal_jax.model.frozen_base.lora import count_parameters, merge_adapters, split
from crystal_jax.model.frozen_base.quantize import quantize_state
from crystal_jax.model.layers import Dropout, drop
from crystal_jax.model.llama import Llama
from crystal_jax.model.presets import LLAMA2
from tests.experiments import LORA, NO_LORA, SCANNED, TINY, UNROLLED, build, logits

TOKENS = jnp.arange(14).reshape(2, 7)


def randomised(model):
    """Adapters with non-zero B, so that they matter."""
    graph, lora, base = split(model, LORA)
    keys = iter(jax.random.split(jax.random.key(3), 100))
    lora = jax.tree.map(lambda x: 0.1 * jax.random.normal(next(keys), x.shape), lora)
    return nnx.merge(graph, lora, base)


def test_a_fresh_adapter_changes_nothing():
    adapted = build(lora=LORA)
    plain = build(seed=1)
    nnx.update(plain, nnx.state(adapted, nnx.Not(nnx.LoRAParam)))
    np.testing.assert_array_equal(logits(adapted, TOKENS), logits(plain, TOKENS))


@pytest.mark.parametrize("targets", [("q", "v"), ("q", "k", "v", "o"), PROJECTIONS])
def test_merged_equals_unmerged(targets):
    lora = dataclasses.replace(LORA, targets=targets)
    adapted = randomised(build(TINY, lora, SCANNED))
    plain = build(TINY, NO_LORA, SCANNED, seed=1)
    merged = nnx.merge(nnx.split(plain)[0], merge_adapters(nnx.state(adapted), lora))
    expected = logits(adapted, TOKENS)
    assert abs(expected - logits(plain, TOKENS)).max() > 0.1
    np.testing.assert_allclose(logits(merged, TOKENS), expected, atol=2e-5)


@pytest.mark.parametrize("kind", ["int8", "int4", "nf4"])
def test_merged_equals_unmerged_on_a_quantised_base(kind):
    cfg = QuantizationConfig(kind=kind, block_size=16)
    state = quantize_state(nnx.state(randomised(build(TINY, LORA, SCANNED))), cfg)
    graph = nnx.eval_shape(lambda: nnx.split(Llama(TINY, LORA, SCANNED, cfg, rngs=nnx.Rngs(0))))[0]
    plain = build(TINY, NO_LORA, SCANNED, seed=1)
    merged = nnx.merge(nnx.split(plain)[0], merge_adapters(state, LORA, cfg))
    np.testing.assert_allclose(logits(merged, TOKENS), logits(nnx.merge(graph, state), TOKENS), atol=2e-5)
    with pytest.raises(ValueError, match="kind='none' is not how this base is kept"):
        merge_adapters(state, LORA)


def test_rank_stabilised_adapters_are_scaled_by_the_root_of_the_rank():
    assert LORA.scale == LORA.alpha / 4
    stabilised = dataclasses.replace(LORA, rank_stabilized=True)
    assert stabilised.scale == LORA.alpha / 2
    plain = logits(build(lora=LORA), TOKENS)
    once, twice = (
        logits(nnx.merge(nnx.split(build(lora=lora))[0], nnx.state(randomised(build(lora=LORA)))), TOKENS)
        for lora in (dataclasses.replace(LORA, alpha=2 * LORA.alpha), stabilised)
    )
    assert abs(once - plain).max() > 0.1
    np.testing.assert_allclose(twice, once, atol=1e-6)


DROPPING = dataclasses.replace(LORA, dropout=0.3)


def dropped_logits(execution, seed, lora=DROPPING):
    """Logits while training, of a model with adapters that matter."""
    graph, _ = nnx.split(build(TINY, lora, execution))
    state = nnx.state(randomised(build(TINY, LORA)))
    ones = jnp.ones_like(TOKENS)
    positions = jnp.broadcast_to(jnp.arange(7), TOKENS.shape)
    dropped = None if seed is None else Dropout(jax.random.key(seed))
    return jax.jit(lambda state: nnx.merge(graph, state)(TOKENS, positions, ones, dropped))(state)


def test_dropout_depends_on_its_key_alone():
    first = dropped_logits(UNROLLED, 0)
    np.testing.assert_array_equal(first, dropped_logits(UNROLLED, 0))
    for execution in (SCANNED, dataclasses.replace(SCANNED, remat=False), dataclasses.replace(UNROLLED, remat=True)):
        np.testing.assert_allclose(dropped_logits(execution, 0), first, atol=1e-5)
    assert abs(dropped_logits(UNROLLED, 1) - first).max() > 0.01
    assert abs(dropped_logits(UNROLLED, None) - first).max() > 0.01


def test_without_a_rate_dropout_changes_nothing_of_the_program():
    def program(lora, dropout):
        graph, state = nnx.split(build(TINY, lora, SCANNED))
        ones = jnp.ones_like(TOKENS)
        return str(jax.make_jaxpr(lambda state: nnx.merge(graph, state)(TOKENS, ones, ones, dropout))(state))

    none, some = (Dropout(jax.random.key(0), rate) for rate in (0.0, 0.1))
    plain = program(LORA, None)
    assert plain == program(LORA, none) == program(DROPPING, None)
    assert len({plain, program(DROPPING, none), program(LORA, some), program(DROPPING, some)}) == 4


def test_dropout_keeps_the_expectation_and_reaches_the_adapter_only():
    x = jnp.ones((4, 50, 100))
    dropped = drop(x, 0.3, jax.random.key(0))
    np.testing.assert_allclose(np.unique(dropped), [0, 1 / 0.7], rtol=1e-6)
    assert dropped.mean() == pytest.approx(1, abs=0.02)
    # B is zero in a fresh adapter, so all that dropout could change is the base's product.
    graph, state = nnx.split(build(lora=DROPPING))
    ones = jnp.ones_like(TOKENS)
    dropping, without = (nnx.merge(graph, state)(TOKENS, ones, ones, d) for d in (Dropout(jax.random.key(0)), None))
    np.testing.assert_array_equal(dropping, without)


@pytest.mark.parametrize(("field", "value"), [("dropout", 1.0), ("dropout", -0.1), ("rank", -1)])
def test_impossible_values_are_refused(field, value):
    with pytest.raises(ValueError, match=f"lora.{field}"):
        dataclasses.replace(LORA, **{field: value})


def test_only_adapters_are_trainable():
    _, trained, frozen = split(build(lora=LORA), LORA)
    paths = {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(trained)}
    assert {path.split("/")[1] for path in paths} == {"q", "k", "v", "o"}
    assert all("lora_a" in path or "lora_b" in path for path in paths)
    assert count_parameters(frozen) == count_parameters(nnx.state(build()))


@pytest.mark.parametrize(
    ("size", "expected"), [("7b", 6_738_415_616), ("13b", 13_015_864_320), ("70b", 68_976_648_192)]
)
def test_parameter_counts_of_llama_2(size, expected):
    """As published: Touvron et al., arXiv:2307.09288, and Hugging Face's model cards."""
    cfg = LLAMA2[size]
    lora = LoraConfig(rank=8, alpha=32.0, targets=("q", "k", "v", "o"))
    model = nnx.eval_shape(lambda: Llama(cfg, lora, SCANNED, rngs=nnx.Rngs(0)))
    _, _, frozen = split(model, lora)
    assert count_parameters(frozen) == expected
