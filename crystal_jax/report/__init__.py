"""Turns an evaluation into one self-contained HTML page; on the host, without JAX."""
