"""Relaxes given crystals and places them above a convex hull."""

from crystal_jax.callable_package import make_callable

make_callable(__name__)
