"""Text formats, prompts, tokenizers and grammars of crystals; never imports JAX."""
