"""Where the time of a run goes, over all its restarts."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class GoodputTimer:
    """Divides wall time into training and the rest: waiting for data, compiling, validating, sampling, saving.

    Attributes:
        productive: Seconds of training that went into the present state. What was done after the last checkpoint
            before a crash is not in it, as it had to be done again.
    """

    def __init__(self, *, started: float, productive: float):
        """Goes on from an earlier part of the run.

        Args:
            started: When the run was first started, in seconds since 1970.
            productive: See the class; of the steps up to the one that is resumed from.
        """
        self._started, self.productive = started, productive
        self._since = time.perf_counter()
        self._spent: dict[str, float] = {}

    @contextlib.contextmanager
    def span(self, what: str) -> Iterator[None]:
        """The time inside is not training."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._spent[what] = self._spent.get(what, 0.0) + time.perf_counter() - begin

    def interval(self) -> tuple[float, dict[str, float]]:
        """Since the last call: seconds of training, and of each thing else by its name."""
        now = time.perf_counter()
        spent, elapsed = self._spent, now - self._since
        self._spent, self._since = {}, now
        training = max(elapsed - sum(spent.values()), 0.0)
        self.productive += training
        return training, spent

    def goodput(self) -> float:
        """The productive share of all wall time since the first start, machines that were gone included."""
        return self.productive / max(time.time() - self._started, 1e-9)
