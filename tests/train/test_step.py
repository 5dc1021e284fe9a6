import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from crystal_jax.checkpoint.models import abstract_parameters, initial_parameters, load_trained
from crystal_jax.config import MeshConfig, from_config_dict
from crystal_jax.errors import UserError
from crystal_jax.model.frozen_base.lora import count_parameters
from crystal_jax.model.frozen_base.quantize import dequantize_state
from crystal_jax.model.layers import Dropout
from crystal_jax.sharding import make_mesh, put_batch
from crystal_jax.text.tokenizer import AtomCoordinateTokenizer
from crystal_jax.train.run import train
from crystal_jax.train.step import loss_sum, setup
from tests.experiments import GPT2_MODEL, training_config

VOCABULARY = 98


def batch(rows=4, length=12):
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, VOCABULARY, (rows, length + 1)).astype(np.int32)
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        # Rows count differently, so that a mean of means would not be the mean.
        "weights": (np.arange(length) >= 3 * np.arange(rows)[:, None]).astype(np.float32),
        "positions": np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
        "segments": np.ones((rows, length), np.int32),
    }


def experiment_with(**changes):
    return from_config_dict(training_config("", **changes), vocab_size=VOCABULARY)


def run(steps=3, **changes):
    """Losses of some steps, the setup and its last state."""
    experiment = experiment_with(**changes)
    mesh = make_mesh(experiment.mesh)
    parts = setup(experiment, mesh)
    state, losses = parts.state, []
    for _ in range(steps):
        state, metrics = parts.train_step(state, parts.frozen, put_batch(batch(), mesh))
        losses.append(float(metrics["loss"]))
    return losses, parts, state


@pytest.fixture(scope="module")
def plain():
    return run()


def test_training_lowers_the_loss_and_compiles_once(plain):
    losses, parts, state = plain
    assert losses[-1] < losses[0]
    assert parts.train_step._cache_size() == 1
    assert int(state.step) == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": {"accumulate": 2}},
        {"execution": {"scan_layers": True, "remat": True}},
        {"execution": {"scan_layers": True, "remat": True, "keep_products": True}},
        {"execution": {"loss_chunk": 4}},
        {"execution": {"loss_chunk": 4}, "mesh": {"data": 1, "fsdp": 2, "tensor": 2}},
        {"mesh": {"data": 1, "fsdp": 2, "tensor": 2}},
        {"mesh": {"data": -1, "fsdp": 1, "tensor": 1}},
    ],
    ids=[
        "accumulated",
        "scanned",
        "products kept",
        "chunked",
        "chunked, tensor-parallel",
        "tensor-parallel",
        "data-parallel",
    ],
)
def test_how_it_is_computed_does_not_change_the_losses(plain, changes):
    losses, *_ = run(**changes)
    np.testing.assert_allclose(losses, plain[0], rtol=1e-5)


def test_muon_on_a_mesh_equals_muon_on_one_device():
    muon = {"name": "muon", "peak_lr": 0.01}
    alone, *_ = run(optimizer=muon)
    sharded, *_ = run(optimizer=muon, mesh={"data": 1, "fsdp": 2, "tensor": 2})
    assert alone[-1] < alone[0]
    np.testing.assert_allclose(sharded, alone, rtol=1e-4)


def test_lora_trains_adapters_only():
    losses, parts, state = run(lora={"rank": 4}, optimizer={"peak_lr": 0.05})
    assert losses[-1] < losses[0]
    moments = state.opt_state
    # Two moments for each trained parameter and the counters: nothing for the frozen ones.
    arrays = [leaf for leaf in jax.tree.leaves(moments) if leaf.ndim]
    assert sum(a.size for a in arrays) == 2 * count_parameters(state.params)
    assert count_parameters(state.params) < count_parameters(parts.frozen) / 5


def test_frozen_weights_stay_as_they_are():
    _, before, _ = run(steps=0, lora={"rank": 4})
    _, after, _ = run(steps=2, lora={"rank": 4})
    jax.tree.map(np.testing.assert_array_equal, before.frozen, after.frozen)


# High enough that adapters matter from the second step on.
ADAPTERS = {"lora": {"rank": 4}, "optimizer": {"peak_lr": 0.05, "warmup_steps": 0}}
DROPPING = ADAPTERS | {"lora": {"rank": 4, "dropout": 0.3}}


def evaluate(parts, state):
    total, count = parts.eval_step(state.params, parts.frozen, batch())
    return float(total / count)


@pytest.fixture(scope="module")
def adapted():
    return run(**ADAPTERS)


@pytest.fixture(scope="module")
def dropping():
    return run(**DROPPING)


def test_dropout_changes_training_and_not_evaluation(adapted, dropping):
    plain, without, _ = adapted
    dropped, parts, state = dropping
    assert dropped[0] == plain[0]  # B is zero: nothing to see yet
    assert abs(dropped[1] - plain[1]) > 1e-5
    assert parts.train_step._cache_size() == 1
    assert evaluate(parts, state) == evaluate(without, state)
    programs = [
        parts.train_step.lower(state, parts.frozen, batch()).as_text(),
        parts.eval_step.lower(state.params, parts.frozen, batch()).as_text(),
        without.train_step.lower(state, parts.frozen, batch()).as_text(),
    ]
    assert ["threefry" in program for program in programs] == [True, False, False]


@pytest.mark.parametrize(
    "changes",
    [{"execution": {"scan_layers": True, "remat": True}}, {"mesh": {"data": 1, "fsdp": 2, "tensor": 2}}],
    ids=["scanned", "tensor-parallel"],
)
def test_how_it_is_computed_does_not_change_what_is_dropped(changes, dropping):
    np.testing.assert_allclose(run(**DROPPING | changes)[0], dropping[0], rtol=1e-5)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_dropout_is_decided_by_the_step(accumulate):
    changes = DROPPING | {"optimizer": {**ADAPTERS["optimizer"], "accumulate": accumulate}}
    _, parts, state = run(steps=2, **changes)

    def loss(step):
        again = jax.tree.map(jnp.copy, state)._replace(step=jnp.int32(step))
        return float(parts.train_step(again, parts.frozen, batch())[1]["loss"])

    assert loss(2) == loss(2) == run(steps=3, **changes)[0][2]
    assert loss(3) != loss(2)


@pytest.mark.parametrize("model", [None, GPT2_MODEL], ids=["llama", "gpt2"])
def test_blocks_drop_what_they_add(model):
    changes = {} if model is None else {"model": model}
    plain, _, _ = run(steps=1, **changes)
    dropped, parts, state = run(steps=1, train={"dropout": 0.3}, **changes)
    assert 1e-3 < abs(dropped[0] - plain[0]) < 0.5
    elsewhere, _, _ = run(steps=1, train={"dropout": 0.3}, mesh={"data": 1, "fsdp": 2, "tensor": 2}, **changes)
    np.testing.assert_allclose(elsewhere, dropped, rtol=1e-5)
    assert "threefry" not in parts.eval_step.lower(state.params, parts.frozen, batch()).as_text()


def test_nothing_is_left_if_blocks_drop_all_but_a_millionth():
    experiment = experiment_with(train={"dropout": 0.999999})
    graph, params, frozen = initial_parameters(experiment, make_mesh(experiment.mesh))
    model, rows = nnx.merge(graph, params, frozen), batch()
    read = [jnp.asarray(rows[name]) for name in ("tokens", "positions", "segments")]
    hidden = model.hidden(*read, Dropout(jax.random.key(0), experiment.train.dropout))
    np.testing.assert_array_equal(hidden, params["embedding"][...][rows["tokens"]])


def test_a_share_that_cannot_be_dropped_is_refused():
    with pytest.raises(UserError, match=r"train.dropout=1 is not a share below 1"):
        experiment_with(train={"dropout": 1})


def test_each_micro_batch_drops_inputs_of_its_own():
    changes = DROPPING | {"optimizer": {**ADAPTERS["optimizer"], "accumulate": 2}}
    _, parts, state = run(steps=2, **changes)
    rows = {name: jnp.asarray(rows[:2]) for name, rows in batch().items()}
    twice = {name: np.repeat(values, 2, axis=0) for name, values in rows.items()}  # both micro-batches: these rows
    experiment = experiment_with(**changes)
    graph, _, _ = abstract_parameters(experiment, make_mesh(experiment.mesh))
    key = jax.random.fold_in(jax.random.key(experiment.train.seed), 2)
    alone = jax.jit(lambda params, key: loss_sum(nnx.merge(graph, params, parts.frozen), rows, Dropout(key)))
    (first, count), (second, _) = (alone(state.params, jax.random.fold_in(key, i)) for i in (0, 1))
    assert abs(first - second) > 1e-4
    _, metrics = parts.train_step(state, parts.frozen, twice)
    assert float(metrics["loss"]) == pytest.approx(float((first + second) / (2 * count)), rel=1e-5)


@pytest.mark.parametrize("kind", ["int8", "int4", "nf4"])
def test_adapters_train_on_a_quantised_base(kind, adapted):
    quantised = ADAPTERS | {"quantize": {"kind": kind, "block_size": 8}}
    losses, parts, state = run(**quantised)
    assert losses[-1] < losses[0]
    assert 0 < abs(losses[0] - adapted[0][0]) < {"int8": 0.01, "int4": 0.1, "nf4": 0.1}[kind]
    codes = parts.frozen["blocks"]["gate"]["codes"].get_value()
    assert codes.dtype == (jnp.int8 if kind == "int8" else jnp.uint8)
    # Gradients and moments for the adapters alone.
    assert "codes" not in str(jax.tree.structure(state))
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert sum(a.size for a in moments) == 2 * count_parameters(state.params)
    elsewhere = {"mesh": {"data": 1, "fsdp": 2, "tensor": 2}, "execution": {"scan_layers": True, "remat": True}}
    np.testing.assert_allclose(run(**quantised, **elsewhere)[0], losses, rtol=1e-5)


def test_quantising_what_is_trained_is_refused():
    with pytest.raises(UserError, match=r"quantize.kind='nf4' needs a frozen base.*lora.rank=0"):
        experiment_with(quantize={"kind": "nf4"})
    with pytest.raises(UserError, match=r"quantize.kind='int3' is none of"):
        experiment_with(quantize={"kind": "int3"})


def test_tokens_that_are_alike_begin_alike():
    tokenizer = AtomCoordinateTokenizer()
    config = training_config("", train={"token_features": 0.8}, tokenizer={"name": tokenizer.name})
    experiment = from_config_dict(config, vocab_size=tokenizer.vocab_size + 7)
    _, params, _ = initial_parameters(experiment, make_mesh(MeshConfig(data=1, fsdp=2, tensor=2)))
    rows = np.array(params["embedding"].get_value())
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    near, far = ([rows[tokenizer.spell("", value)[0]] for value in pair] for pair in (("Fe", "Co"), ("Fe", "O")))
    assert near[0] @ near[1] > far[0] @ far[1] + 0.2


def test_token_features_need_tokens_and_an_embedding_to_train():
    for changes in ({"tokenizer": {"name": "character"}}, ADAPTERS):
        with pytest.raises(UserError, match=r"train.token_features needs tokenizer.name='atom_coordinate'"):
            experiment_with(train={"token_features": 0.8}, **changes)
    with pytest.raises(UserError, match=r"token_features=2 is not a share"):
        experiment_with(train={"token_features": 2})


def test_a_run_on_a_quantised_base_with_dropout_resumes_to_the_bit(trained, dataset, tmp_path):
    config = training_config(
        str(dataset),
        lora={"rank": 2, "dropout": 0.2},
        quantize={"kind": "nf4", "block_size": 8},
        base=str(trained),
        train={"num_steps": 3, "eval_every": 3, "save_every": 3},
    )
    train(config, workdir=tmp_path / "whole")
    train(config, workdir=tmp_path / "parts", stop_after=2)
    train(config, workdir=tmp_path / "parts")
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=1))
    whole, parts = (load_trained(tmp_path / name, mesh) for name in ("whole", "parts"))
    jax.tree.map(np.testing.assert_array_equal, whole.params, parts.params)
    # The kernels are the base's, rounded.
    base = load_trained(trained, mesh).params["blocks"]["gate"]["kernel"].get_value()
    rounded = dequantize_state(whole.params, whole.experiment.quantize)["blocks"]["gate"]["kernel"].get_value()
    assert 0.01 < jnp.linalg.norm(rounded - base) / jnp.linalg.norm(base) < 0.1
