"""Experiments: each file has `get_config(variant)` and opens with its result, its cost and its command."""
