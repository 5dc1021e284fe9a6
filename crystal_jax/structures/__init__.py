"""Crystals in and out: one reader for all commands, from a file of any kind to structures or the reasons for none."""

from crystal_jax.structures.entry import Entry, Sample
from crystal_jax.structures.parse import parse
from crystal_jax.structures.read import read_entries, read_reference

__all__ = ["Entry", "Sample", "parse", "read_entries", "read_reference"]
