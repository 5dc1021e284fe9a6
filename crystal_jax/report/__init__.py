"""Reports: an evaluation as one self-contained HTML page, written on the host without JAX."""

from crystal_jax.callable_package import make_callable

make_callable(__name__)
