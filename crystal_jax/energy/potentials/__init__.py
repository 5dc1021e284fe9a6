"""Interatomic potentials, and their weights."""
