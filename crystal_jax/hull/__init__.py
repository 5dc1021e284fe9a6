"""Builds convex hulls of known materials with a potential's own energies."""

from crystal_jax.callable_package import make_callable

make_callable(__name__)
