"""Makes the C library keep freed memory for the next program run.

XLA allocates the temporary memory of each execution anew. By default glibc returns blocks of that size to the kernel at
once, which then zeroes every page again: up to half of the time of a short program on a CPU.
"""

from __future__ import annotations

import ctypes
import sys

# Parameters of mallopt(3), from glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
    """Tells glibc to serve large blocks from its heap and to keep them when they are freed. Does nothing elsewhere.

    To be called before threads start, because each thread may otherwise get a heap of its own.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return
    for parameter, value in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1)):
        mallopt(parameter, value)
