"""A frozen base model: quantisation, its memory, and LoRA adapters beside it."""
