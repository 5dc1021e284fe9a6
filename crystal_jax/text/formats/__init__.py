"""Text formats of crystals."""
