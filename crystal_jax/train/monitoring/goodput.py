"""Measures how much of a run's wall time is training, over all restarts."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class GoodputTimer:
    """Divides wall time into training and the rest: waiting for data, compiling, validating, sampling, saving.

    Attributes:
        productive: seconds of training that led to the current state. Steps lost in a crash, after the last checkpoint,
            do not count.
    """

    def __init__(self, *, started: float, productive: float):
        """Continues from an earlier part of the run.

        Args:
            started: time of the run's first start, in seconds since 1970.
            productive: productive seconds up to the step that the run resumes from.
        """
        self._started, self.productive = started, productive
        self._since = time.perf_counter()
        self._spent: dict[str, float] = {}

    @contextlib.contextmanager
    def span(self, what: str) -> Iterator[None]:
        """Counts the time inside the block as `what`, not as training."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._spent[what] = self._spent.get(what, 0.0) + time.perf_counter() - begin

    def interval(self) -> tuple[float, dict[str, float]]:
        """Returns the seconds of training since the last call, and the seconds of each other activity by name."""
        now = time.perf_counter()
        spent, elapsed = self._spent, now - self._since
        self._spent, self._since = {}, now
        training = max(elapsed - sum(spent.values()), 0.0)
        self.productive += training
        return training, spent

    def goodput(self) -> float:
        """Returns the productive share of all wall time since the first start, including downtime of the machines."""
        return self.productive / max(time.time() - self._started, 1e-9)
