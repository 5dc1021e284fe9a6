"""Fixtures for all tests."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of the data that is too large for the repository; tests that need it are skipped without it."""
    default = Path(__file__).resolve().parents[1].parent / "shared"
    folder = Path(os.environ.get("CRYSTAL_JAX_SHARED", default))
    if not folder.is_dir():
        pytest.skip(f"no {folder}; set CRYSTAL_JAX_SHARED")
    return folder
