"""A profiler trace of some steps, for TensorBoard or xprof."""

from __future__ import annotations

import re
from pathlib import Path

import jax

from crystal_jax.errors import UserError


def parse_steps(text: str) -> range:
    """`START:STOP`, both included.

    Raises:
        UserError: it is nothing like it.
    """
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if not match or not 0 < int(match[1]) <= int(match[2]):
        raise UserError(f"--profile_steps={text}: give the first and the last step to trace, such as 10:12")
    return range(int(match[1]), int(match[2]) + 1)


class Profiler:
    """Traces `steps` into a folder; `before` and `after` are called around every step."""

    def __init__(self, folder: Path, steps: range):
        self._folder, self._steps, self._running = folder, steps, False

    def before(self, step: int) -> None:
        """Begins if this is the first step to trace; a run resumed in their midst begins there."""
        if step in self._steps and not self._running:
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def after(self, step: int, results: object) -> None:
        """Ends after the last one; waits for its results, so that its computation is in the trace."""
        if self._running and step == self._steps[-1]:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        """Ends a trace that is still running."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
