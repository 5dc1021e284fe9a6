"""Computes the likelihood of given crystals under a model."""

from crystal_jax.callable_package import make_callable

make_callable(__name__)
