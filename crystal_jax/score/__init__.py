"""How probable a model finds given crystals."""
