"""Says on the terminal what a command is doing, from its first second: loading, compiling, and then its bars."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    """Writes a line to standard error, if that is a terminal; progress bars stay below it."""
    if sys.stderr.isatty():
        from tqdm import tqdm  # late: the first line appears before anything is imported

        tqdm.write(text, file=sys.stderr)
