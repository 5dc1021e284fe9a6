"""Reports: an evaluation as one self-contained HTML page, written on the host without JAX."""
