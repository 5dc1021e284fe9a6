"""GPT-2 is trained, adapted, sampled and scored by the same code as LLaMA-2; tests/parity has its numbers."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from crystal_jax.checkpoint.conversion.import_export import merged_source
from crystal_jax.config import from_config_dict
from crystal_jax.errors import UserError
from crystal_jax.model.architectures import make_model
from crystal_jax.model.attention.kv_cache import empty_cache
from crystal_jax.model.flops import train_flops_per_token
from crystal_jax.model.frozen_base.lora import count_parameters, merge_adapters, split
from crystal_jax.sample.run import sample
from crystal_jax.score.run import score
from crystal_jax.sharding import LAYOUTS
from crystal_jax.train.run import train
from tests.experiments import GPT2_MODEL, LORA, NO_LORA, SCANNED, TINY_GPT2, build, extend, logits, training_config

TOKENS = jnp.arange(14).reshape(2, 7)


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory):
    """Six steps on four devices."""
    workdir = tmp_path_factory.mktemp("gpt2") / "run"
    train(training_config(str(dataset), model=GPT2_MODEL, mesh={"data": 2, "fsdp": 2, "tensor": 1}), workdir=workdir)
    return workdir


def test_training_lowers_the_loss(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < losses[0] - 0.1


def test_samples_and_scores(run, tmp_path):
    table = sample(run, output=tmp_path / "samples", num_samples=6, batch_size=4, max_atoms=4)
    rows = [json.loads(line) for line in (tmp_path / "samples/samples.jsonl").read_text().splitlines()]
    assert [row["status"] for row in rows] == ["complete"] * 6
    scores = score(run, samples=table, output=tmp_path / "scores", translations=2)
    assert all(row["ipt"] >= 0 for row in map(json.loads, scores.read_text().splitlines()) if not row["reason"])


def test_texts_longer_than_the_positions_are_refused(run, tmp_path):
    with pytest.raises(UserError, match=r"texts of up to 4\d\d tokens are longer than .*model.num_positions=384"):
        sample(run, output=tmp_path / "samples", num_samples=1, max_atoms=110)
    with pytest.raises(UserError, match=r"data\.seq_len=384 is more than model.num_positions=383"):
        from_config_dict(training_config("", model={**GPT2_MODEL, "num_positions": 383}), vocab_size=98)


def test_adapters_of_projections_that_it_lacks_are_refused():
    with pytest.raises(UserError, match=r"lora\.targets has gate; model.architecture='gpt2' has q, k, v, o, up, down"):
        from_config_dict(training_config("", model=GPT2_MODEL, lora={"targets": ("q", "gate")}), vocab_size=98)


def test_other_formats_take_llamas_only(run):
    with pytest.raises(UserError, match="holds a gpt2; other formats are written of LLaMA's only"):
        merged_source(run)


@pytest.mark.parametrize("targets", [("q", "v"), TINY_GPT2.projections])
def test_merged_adapters_equal_unmerged_ones_and_biases_stay(targets):
    lora = dataclasses.replace(LORA, targets=targets)
    graph, factors, base = split(build(TINY_GPT2, lora, SCANNED), lora)
    draw = iter(jax.random.split(jax.random.key(3), 200))
    factors, base = (
        jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(draw), x.shape), part) for part in (factors, base)
    )
    adapted = nnx.merge(graph, factors, base)
    merged = merge_adapters(nnx.state(adapted), lora)
    plain = nnx.merge(nnx.split(build(TINY_GPT2, NO_LORA, SCANNED))[0], merged)
    np.testing.assert_allclose(logits(plain, TOKENS), logits(adapted, TOKENS), atol=2e-5)


@pytest.mark.parametrize("layout", LAYOUTS.values())
def test_rows_are_read_at_places_of_their_own(layout):
    """Each row's positions go on from its own length."""
    model = build(TINY_GPT2)
    expected = logits(model, TOKENS)
    cache = empty_cache(TINY_GPT2, batch=2, capacity=9, layout=layout)
    _, cache = extend(model, TOKENS[:, :3], jnp.array([3, 1]), cache)
    part, _ = extend(model, jnp.stack([TOKENS[0, 3:5], TOKENS[1, 1:3]]), jnp.full(2, 2), cache)
    np.testing.assert_allclose(part[0], expected[0, 3:5], atol=1e-5)
    np.testing.assert_allclose(part[1], expected[1, 1:3], atol=1e-5)


def test_operations_are_those_of_its_kernels():
    kernels = [x for path, x in nnx.to_flat_state(nnx.state(build(TINY_GPT2))) if path[-1] == "kernel"]
    weights = sum(x.get_value().size for x in kernels) + TINY_GPT2.vocab_size * TINY_GPT2.embed_dim
    assert train_flops_per_token(TINY_GPT2, NO_LORA) == 6 * weights


def test_the_smallest_of_the_released_models_has_124_million_parameters():
    """124,439,808: Radford et al., 2019, as counted from Hugging Face's `gpt2`."""
    cfg = dataclasses.replace(
        TINY_GPT2, vocab_size=50_257, embed_dim=768, mlp_dim=3072, num_layers=12, num_heads=12, num_positions=1024
    )
    state = nnx.state(nnx.eval_shape(lambda: make_model(cfg, NO_LORA, SCANNED, rngs=nnx.Rngs(0))))
    assert count_parameters(state) == 124_439_808
