"""The loss of counted places, in chunks, against Optax's over all logits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from crystal_jax.model.cross_entropy import chunked_cross_entropy

ROWS, PLACES, WIDTH, VOCABULARY = 3, 12, 5, 17


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, PLACES, WIDTH)).astype(np.float32)
    head = rng.normal(size=(WIDTH, VOCABULARY)).astype(np.float32)
    targets = rng.integers(0, VOCABULARY, (ROWS, PLACES))
    weights = rng.random((ROWS, PLACES)) * (rng.random((ROWS, PLACES)) < [[0.2], [0.5], [1.0]])
    return tuple(map(jnp.asarray, (x, head, targets, weights.astype(np.float32))))


def plain(x, head, targets, weights):
    return (optax.softmax_cross_entropy_with_integer_labels(x @ head, targets) * weights).sum()


@pytest.mark.parametrize("chunk", [1, 4, 12])
def test_loss_and_gradients_are_those_of_all_logits(arrays, chunk):
    def chunked(x, head, targets, weights):
        return chunked_cross_entropy(x, head, targets, weights, chunk=chunk)

    ours = jax.jit(jax.value_and_grad(chunked, argnums=(0, 1)))(*arrays)
    theirs = jax.jit(jax.value_and_grad(plain, argnums=(0, 1)))(*arrays)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, theirs)


def test_scaled_losses_have_scaled_gradients(arrays):
    gradient = jax.grad(lambda x: 3 * chunked_cross_entropy(x, *arrays[1:], chunk=4))(arrays[0])
    np.testing.assert_allclose(gradient, 3 * jax.grad(plain)(*arrays), rtol=1e-5, atol=1e-5)


def test_a_frozen_head_is_given_no_gradient(arrays):
    x, head, *rest = arrays

    def products(of: tuple[int, ...]) -> int:
        def loss(x, head):
            return chunked_cross_entropy(x, head, *rest, chunk=4)

        return str(jax.make_jaxpr(jax.grad(loss, argnums=of))(x, head)).count("dot_general")

    assert products((0,)) == products((0, 1)) - 1


def test_rows_in_which_nothing_counts_have_no_loss(arrays):
    x, head, targets, weights = arrays
    none = jnp.zeros_like(weights)
    loss, gradient = jax.value_and_grad(chunked_cross_entropy)(x, head, targets, none, chunk=4)
    assert loss == 0
    assert not gradient.any()


def test_a_chunk_that_does_not_divide_a_row_is_an_error(arrays):
    with pytest.raises(ValueError, match="chunks of 5 places do not divide rows of 12"):
        chunked_cross_entropy(*arrays, chunk=5)
