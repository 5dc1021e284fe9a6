"""Prepared crystals, examples, batches."""
