"""Training: optimizer, training step and training loop."""

from crystal_jax.callable_package import make_callable

make_callable(__name__)
