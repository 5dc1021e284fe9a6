import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from crystal_jax.config import PROJECTIONS, LlamaConfig, LoraConfig
from crystal_jax.model.llama import Llama
from crystal_jax.model.lora import count_parameters, merge_adapters, split
from tests.experiments import LORA, NO_LORA, SCANNED, TINY, build, logits

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


def test_only_adapters_are_trainable():
    _, trained, frozen = split(build(lora=LORA), LORA)
    paths = {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(trained)}
    assert {path.split("/")[1] for path in paths} == {"q", "k", "v", "o"}
    assert all("lora_a" in path or "lora_b" in path for path in paths)
    assert count_parameters(frozen) == count_parameters(nnx.state(build()))


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((4096, 11008, 32, 32, 32), 6_738_415_616),
        ((5120, 13824, 40, 40, 40), 13_015_864_320),
        ((8192, 28672, 80, 64, 8), 68_976_648_192),
    ],
    ids=["7b", "13b", "70b"],
)
def test_parameter_counts_of_llama_2(sizes, expected):
    """As published: Touvron et al., arXiv:2307.09288, and Hugging Face's model cards."""
    embed, mlp, layers, heads, kv_heads = sizes
    cfg = LlamaConfig(
        vocab_size=32_000,
        embed_dim=embed,
        mlp_dim=mlp,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=128,
        norm_eps=1e-5,
        rope_theta=1e4,
        tie_embeddings=False,
        dtype="bfloat16",
    )
    lora = LoraConfig(rank=8, alpha=32.0, targets=("q", "k", "v", "o"))
    model = nnx.eval_shape(lambda: Llama(cfg, lora, SCANNED, rngs=nnx.Rngs(0)))
    _, _, frozen = split(model, lora)
    assert count_parameters(frozen) == expected
