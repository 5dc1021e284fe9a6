"""Checkpoint formats of other projects, one file per format; conversions are strict in both directions."""
