"""How a token is drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crystal_jax.sample.engine.draw import draw, violates_limits

KEYS = jax.random.split(jax.random.key(0), 4000)


def drawn(scores, *, temperature=1.0, top_p=1.0):
    return np.asarray(
        draw(KEYS, jnp.tile(scores, (4000, 1)), jnp.full(4000, float(temperature)), jnp.full(4000, float(top_p)))
    )


def test_greedy_is_the_largest_and_cold_approaches_it():
    scores = jnp.array([0.0, 2.0, 1.0, -jnp.inf])
    assert (drawn(scores, temperature=0) == 1).all()
    assert (drawn(scores, temperature=0.01) == 1).all()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_follow_the_tempered_distribution(temperature):
    scores = jnp.array([0.0, 2.0, 1.0, -jnp.inf])
    frequencies = np.bincount(drawn(scores, temperature=temperature), minlength=4) / 4000
    np.testing.assert_allclose(frequencies, jax.nn.softmax(scores / temperature), atol=0.03)
    assert frequencies[3] == 0


def test_top_p_keeps_the_smallest_set_that_reaches_the_share():
    probabilities = jnp.array([0.1, 0.5, 0.25, 0.15])
    for top_p, kept in ((0.4, [1]), (0.6, [1, 2]), (0.75, [1, 2]), (0.8, [1, 2, 3]), (0.99, [0, 1, 2, 3])):
        columns = drawn(jnp.log(probabilities), top_p=top_p)
        assert sorted(set(columns.tolist())) == kept
        expected = np.where(np.isin(np.arange(4), kept), probabilities, 0)
        np.testing.assert_allclose(np.bincount(columns, minlength=4) / 4000, expected / expected.sum(), atol=0.03)


def test_rows_have_temperatures_of_their_own():
    scores = jnp.tile(jnp.array([0.0, 2.0, 1.0]), (4000, 1))
    cold = jnp.arange(4000) % 2 == 0
    columns = np.asarray(draw(KEYS, scores, jnp.where(cold, 0.0, 1.0), jnp.where(cold, 1.0, 0.9)))
    assert (columns[::2] == 1).all()
    assert set(columns[1::2].tolist()) == {1, 2}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_texts_stray_as_often_as_what_is_forbidden_would_be_drawn(temperature):
    scores, permitted = jnp.array([0.0, 2.0, 1.0, -jnp.inf]), jnp.array([True, False, True, True])
    rows = jnp.tile(scores, (4000, 1))
    limited = jnp.where(permitted, rows, -jnp.inf)
    rejected = np.asarray(violates_limits(KEYS, rows, limited, jnp.full(4000, temperature)))
    share = float(jax.nn.softmax(scores / temperature)[1])
    assert rejected.mean() == pytest.approx(share, abs=0.03)
    # What is drawn does not depend on whether it strays.
    column = np.asarray(draw(KEYS, limited, jnp.full(4000, temperature), jnp.ones(4000)))
    assert (column[~rejected] == 0).mean() == pytest.approx((column == 0).mean(), abs=0.03)
    assert not violates_limits(KEYS, rows, rows, jnp.full(4000, temperature)).any()
