"""Ranks the elements that could replace an element of a crystal."""

from crystal_jax.callable_package import make_callable

make_callable(__name__)
