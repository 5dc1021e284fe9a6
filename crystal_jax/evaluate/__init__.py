"""Evaluation of generated crystals: validity, novelty, stability, distributions; on the host, without JAX."""
