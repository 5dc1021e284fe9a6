"""LLaMA-2 and its adapters."""
