"""Keeps pymatgen's and spglib's remarks on single crystals from burying an evaluation's output."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator

# spglib's C library prints each cell that it gives up on, and asks only the environment whether to.
os.environ.setdefault("SPGLIB_WARNING", "OFF")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Ignores remarks on rounded coordinates and absurd cells, and spglib's on how pymatgen calls it.

    Use as `@quiet()` on a function that hands crystals to pymatgen.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's, of division by zero and overflow
        warnings.filterwarnings("ignore", message="Set OLD_ERROR_HANDLING", category=DeprecationWarning)
        yield
