"""The page docs/TPU.md: configurations compiled for the slices they are meant for."""
