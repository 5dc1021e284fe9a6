"""Searches for crystals of high reward."""

from crystal_jax.callable_package import make_callable

make_callable(__name__)
