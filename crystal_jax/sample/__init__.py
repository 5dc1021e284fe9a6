"""New crystals from a trained model."""
