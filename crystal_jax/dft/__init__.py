"""Density-functional theory on crystals that the energy model finds stable, the last step of the paper's evaluation."""
