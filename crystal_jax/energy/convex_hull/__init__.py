"""Energies above the convex hull of known materials."""
