"""Crystals as text; never imports JAX."""
