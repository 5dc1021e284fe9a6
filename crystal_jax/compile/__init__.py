"""Ahead-of-time compilation for TPUs and GPUs that are not present, and analysis of the compiled programs."""
