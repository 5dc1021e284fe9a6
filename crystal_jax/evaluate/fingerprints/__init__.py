"""Fingerprints of structures and compositions, and coverage by them."""
