"""Experiments: each file defines `get_config(variant)`; its docstring states result, cost and command."""
