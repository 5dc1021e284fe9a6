from flax import nnx

from crystal_jax.model.flops import train_flops_per_token
from crystal_jax.model.frozen_base.lora import count_parameters
from tests.experiments import LORA, NO_LORA, TINY, build

# The embedding is looked up, and norms are no products.
NOT_MULTIPLIED = TINY.vocab_size * TINY.embed_dim + (2 * TINY.num_layers + 1) * TINY.embed_dim


def test_full_training_takes_six_operations_a_weight():
    weights = count_parameters(nnx.state(build())) - NOT_MULTIPLIED
    assert train_flops_per_token(TINY, NO_LORA) == 6 * weights


def test_frozen_weights_take_four():
    state = nnx.state(build(lora=LORA))
    adapters = count_parameters(nnx.filter_state(state, nnx.LoRAParam))
    frozen = count_parameters(state) - adapters - NOT_MULTIPLIED
    assert train_flops_per_token(TINY, LORA) == 4 * frozen + 6 * adapters
