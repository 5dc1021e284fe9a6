"""Crystal generation with LLaMA-2 and LoRA, in JAX: text, training, constrained sampling, evaluation."""

__version__ = "0.1.0"
