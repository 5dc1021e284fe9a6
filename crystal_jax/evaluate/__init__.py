"""Evaluation of generated crystals: validity, novelty, stability, distributions; on the host, without JAX."""

from crystal_jax.callable_package import make_callable

make_callable(__name__)
