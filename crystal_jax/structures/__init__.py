"""Reads crystals from files of any kind: one reader for all commands, which returns structures or failure reasons."""

from crystal_jax.structures.build import entry_of_structure
from crystal_jax.structures.entry import Entry, Sample
from crystal_jax.structures.parse import parse
from crystal_jax.structures.read import entries_of, read_entries, read_reference

__all__ = ["Entry", "Sample", "entries_of", "entry_of_structure", "parse", "read_entries", "read_reference"]
