"""Samples new crystals from a trained model."""
