import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crystal_jax.config import GuardConfig, from_config_dict
from crystal_jax.sharding import make_mesh, put_batch
from crystal_jax.train.loss_spike import new_guard, skip_if_spike
from crystal_jax.train.step import setup
from tests.experiments import training_config
from tests.train.test_step import VOCABULARY, batch

CFG = GuardConfig(window=4, loss_factor=2.0, norm_factor=10.0, patience=3)


def verdicts(losses, norms=None, cfg=CFG):
    guard, found = new_guard(cfg), []
    step = jax.jit(lambda guard, loss, norm: skip_if_spike(cfg, guard, loss, norm))
    for loss, norm in zip(losses, norms or [1.0] * len(losses), strict=True):
        believed, guard = step(guard, jnp.float32(loss), jnp.float32(norm))
        found.append(bool(believed))
    return found, guard


def test_a_spike_is_a_multiple_of_the_median_of_accepted_steps():
    found, guard = verdicts([9, 4, 2, 2, 6.1, 5.9, 4.1, 2, 5])
    # The median of 9, 4, 2, 2 is 3; of 4, 2, 2, 5.9 it is 3 again; of 2, 2, 5.9, 4.1 3.05; of 2, 5.9, 4.1, 2 3.05.
    assert found == [True, True, True, True, False, True, True, True, True]
    assert (int(guard.accepted), int(guard.skipped), int(guard.in_a_row)) == (8, 1, 0)


def test_gradient_norms_have_a_yardstick_of_their_own():
    assert verdicts([1] * 6, [1, 1, 1, 1, 10.1, 9.9])[0] == [True] * 4 + [False, True]


def test_the_first_steps_are_only_asked_to_be_finite():
    assert verdicts([1, 100, np.nan, 1, np.inf, 1])[0] == [True, True, False, True, False, True]
    assert verdicts([1, 1], [np.nan, 1])[0] == [False, True]


def test_a_factor_of_zero_never_skips():
    off = GuardConfig(window=1, loss_factor=0, norm_factor=0, patience=1)
    assert verdicts([1, 1e6, np.nan], [1, 1e6, 1], off)[0] == [True, True, False]


def test_skipped_steps_are_counted_in_a_row():
    _, guard = verdicts([1, 1, 1, 1, 9, 9])
    assert (int(guard.skipped), int(guard.in_a_row)) == (2, 2)


@pytest.mark.parametrize("change", [{"window": 0}, {"loss_factor": 0.5}, {"patience": 0}])
def test_impossible_settings_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        GuardConfig(**change)


def test_a_skipped_step_changes_nothing_but_its_count():
    experiment = from_config_dict(
        training_config("", guard={"window": 1, "loss_factor": 1.01}, model={"num_layers": 1}), vocab_size=VOCABULARY
    )
    mesh = make_mesh(experiment.mesh)
    parts = setup(experiment, mesh)
    good = put_batch(batch(), mesh)
    state, _ = parts.train_step(parts.state, parts.frozen, good)
    before = jax.device_get((state.params, state.opt_state))
    # The one token everywhere that the model expects least.
    others = [put_batch({**batch(), "targets": np.full_like(batch()["targets"], t)}, mesh) for t in range(20)]
    losses = [float(parts.eval_step(state.params, parts.frozen, other)[0]) for other in (good, *others)]
    assert max(losses) > 1.02 * losses[0]
    bad = others[int(np.argmax(losses[1:]))]
    state, metrics = parts.train_step(state, parts.frozen, bad)
    assert int(metrics["skipped_in_a_row"]) == int(metrics["skipped"]) == 1
    jax.tree.map(np.testing.assert_array_equal, jax.device_get((state.params, state.opt_state)), before)
    assert int(state.step) == 2
    state, metrics = parts.train_step(state, parts.frozen, good)
    assert (int(metrics["skipped_in_a_row"]), int(metrics["skipped"])) == (0, 1)
    assert parts.train_step._cache_size() == 1
