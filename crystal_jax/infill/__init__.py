"""Ranks the elements that could replace an element of a crystal."""
