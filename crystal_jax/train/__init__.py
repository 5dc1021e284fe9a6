"""Training: optimizer, training step and training loop."""
