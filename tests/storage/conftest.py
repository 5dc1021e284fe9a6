"""Nothing is left in the user's cache, or found there."""

from tests.evaluate.conftest import _own_cache  # noqa: F401
