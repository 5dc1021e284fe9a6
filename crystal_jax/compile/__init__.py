"""What the TPU compiler makes of a configuration, without a TPU: memory, arithmetic, traffic, an estimate of time."""
