"""Being asked to leave: SIGTERM, which clouds and schedulers send some seconds before they take a machine away.

One process notes the signal. Several have to stop at the same step, whoever was asked first: JAX's coordination
service finds one that none of them has passed.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils


class Preemption:
    """`with Preemption() as preemption:` listens; `preemption.reached(step)` is asked once a step, by all processes."""

    def __init__(self):
        self._asked = threading.Event()
        self._before: Any = None
        # Python can only set handlers in the main thread; JAX's service listens by itself.
        self._listens = jax.process_count() == 1 and threading.current_thread() is threading.main_thread()

    def __enter__(self) -> Preemption:
        if self._listens:
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._listens:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, _signal: int, _frame: FrameType | None) -> None:
        self._asked.set()

    def reached(self, step: int) -> bool:
        """Whether this is the step after which to save and leave."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked.is_set()
