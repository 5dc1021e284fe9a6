"""Searches for crystals of high reward."""
