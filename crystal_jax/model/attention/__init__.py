"""Attention: dot products, TPU kernels, rotary position embeddings, and the KV cache."""
