"""Computes the likelihood of given crystals under a model."""
