"""Optimizer, step and loop."""
