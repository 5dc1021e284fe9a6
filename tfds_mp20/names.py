"""The names that `crystal-jax prepare` offers, without the imports of the data sets themselves."""

from __future__ import annotations

DATASETS = ("mp20", "perov5", "carbon24", "mp20_open", "amcsd", "csv")
FAIL, SKIP = "fail", "skip"  # what to do where a crystal of csv cannot be used
