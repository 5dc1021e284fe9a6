"""Suppresses pymatgen's and spglib's warnings about single crystals, which would flood an evaluation's output."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator

# spglib's C library prints each cell that it fails on; only this environment variable turns it off.
os.environ.setdefault("SPGLIB_WARNING", "OFF")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Ignores warnings about rounded coordinates and invalid cells, and spglib's about pymatgen's calls.

    Use it as `@quiet()` on a function that passes crystals to pymatgen.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's warnings of division by zero and overflow
        warnings.filterwarnings("ignore", message="Set OLD_ERROR_HANDLING", category=DeprecationWarning)
        yield
