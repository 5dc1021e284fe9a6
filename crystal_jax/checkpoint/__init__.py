"""Checkpoints of training runs, and conversion from and to other formats."""
