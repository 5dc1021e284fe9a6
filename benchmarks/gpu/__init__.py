"""Measurements on an NVIDIA GPU: `benchmarks/gpu/run.sh`."""
