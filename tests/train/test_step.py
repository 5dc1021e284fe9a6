import jax
import numpy as np
import pytest

from crystal_jax.config import from_config_dict
from crystal_jax.model.lora import count_parameters
from crystal_jax.sharding import make_mesh, put_batch
from crystal_jax.train.step import setup
from tests.experiments import training_config

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


def run(steps=3, **changes):
    """Losses of some steps, the setup and its last state."""
    experiment = from_config_dict(training_config("", **changes), vocab_size=VOCABULARY)
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
        {"mesh": {"data": 1, "fsdp": 2, "tensor": 2}},
        {"mesh": {"data": -1, "fsdp": 1, "tensor": 1}},
    ],
    ids=["accumulated", "scanned", "tensor-parallel", "data-parallel"],
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
