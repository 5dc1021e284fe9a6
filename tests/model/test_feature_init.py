import jax
import numpy as np
import pytest

from crystal_jax.model.feature_init import feature_init

EMBEDDING = 0.1 * jax.random.normal(jax.random.key(0), (6, 4_000))
# Of four tokens; the second and third are nearly the same, and the fourth has none.
FEATURES = np.array([[np.sqrt(3), 0, 0], [0, 1.5, np.sqrt(0.75)], [0, 1.4, np.sqrt(1.04)], [0, 0, 0]])


def products(rows):
    return np.asarray(rows @ rows.T) / (0.01 * rows.shape[1])


def test_tokens_are_alike_as_far_as_their_features_are():
    mixed = feature_init(EMBEDDING, FEATURES, 0.8, jax.random.key(1))
    expected = 0.8 * FEATURES @ FEATURES.T / 3
    np.fill_diagonal(expected, 1)
    np.testing.assert_allclose(products(mixed)[:4, :4], expected, atol=0.06)


def test_tokens_without_features_stay():
    mixed = feature_init(EMBEDDING, FEATURES, 0.8, jax.random.key(1))
    np.testing.assert_array_equal(mixed[3:], EMBEDDING[3:])


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_share_goes_from_none_to_all(share):
    mixed = feature_init(EMBEDDING, FEATURES, share, jax.random.key(1))
    assert np.array_equal(mixed, EMBEDDING) == (share == 0)
    same = products(mixed)[1, 2]
    assert same == pytest.approx(share * (FEATURES[1] @ FEATURES[2]) / 3, abs=0.06)
