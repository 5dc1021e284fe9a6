"""Says which generated crystals are sound, new, and distributed like real ones; on the host, without JAX."""
