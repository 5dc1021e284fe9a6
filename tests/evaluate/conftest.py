"""A cache of their own for all tests of the evaluation."""

import pytest


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """Nothing is left in the user's cache, or found there."""
    monkeypatch.setenv("CRYSTAL_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))
