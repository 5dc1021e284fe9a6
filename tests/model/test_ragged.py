import jax.numpy as jnp
import pytest

from crystal_jax.model.ragged import ragged_index


@pytest.mark.parametrize("count", [[2, 0, 1], [3, 3, 0], [0, 0, 0]])
def test_wanted_tokens_come_back_to_their_places(count):
    tokens = jnp.arange(9).reshape(3, 3)
    there = ragged_index(jnp.array(count), t=3, budget=6)
    packed = there.pack(tokens)
    assert packed.shape == (1, 6)
    wanted = [row * 3 + i for row, number in enumerate(count) for i in range(number)]
    assert packed[0, : len(wanted)].tolist() == wanted
    back = there.unpack(packed)
    for row, number in enumerate(count):
        assert back[row, :number].tolist() == tokens[row, :number].tolist()
