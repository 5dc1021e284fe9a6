"""Transformer models (LLaMA-2, GPT-2), LoRA adapters, quantisation and KV caches."""
