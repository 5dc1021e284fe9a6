"""The last step of the paper's evaluation: density-functional theory on the crystals that look stable."""
