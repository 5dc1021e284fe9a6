"""Samples new crystals from a trained model."""

from crystal_jax.callable_package import make_callable

make_callable(__name__)
