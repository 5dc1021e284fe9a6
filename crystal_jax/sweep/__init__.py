"""Sweeps: many runs of one configuration, and a table of their results."""
