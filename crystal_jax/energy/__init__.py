"""Energies of crystals: models, relaxation, corrections, the convex hull. PyTorch is loaded when a model is."""
