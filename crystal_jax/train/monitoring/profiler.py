"""Records a profiler trace of some steps, for TensorBoard or xprof."""

from __future__ import annotations

import re
from pathlib import Path

import jax

from crystal_jax.errors import UserError


def parse_steps(text: str) -> range:
    """Parses `START:STOP`, both included.

    Raises:
        UserError: the text has another form.
    """
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if not match or not 0 < int(match[1]) <= int(match[2]):
        raise UserError(f"--profile_steps={text}: give the first and the last step to trace, such as 10:12")
    return range(int(match[1]), int(match[2]) + 1)


class Profiler:
    """Traces `steps` into a folder; the training loop calls `before` and `after` around every step."""

    def __init__(self, folder: Path, steps: range):
        self._folder, self._steps, self._running = folder, steps, False

    def before(self, step: int) -> None:
        """Starts the trace at the first step of the range; a run resumed inside the range starts it there."""
        if step in self._steps and not self._running:
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def after(self, step: int, results: object) -> None:
        """Stops the trace after the last step; waits for the step's results, so that the trace contains its
        computation.
        """
        if self._running and step == self._steps[-1]:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        """Stops a trace that is still running."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
