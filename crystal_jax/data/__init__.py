"""Prepared data sets, training examples and batches."""
