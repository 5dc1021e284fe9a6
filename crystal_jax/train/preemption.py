"""Detects preemption: SIGTERM, which clouds and schedulers send some seconds before they stop a machine.

Google also announces it (`train/gce_maintenance.py`), a minute before maintenance; an announcement has the same effect
as the signal.

A single process handles the signal itself. Several processes must stop at the same step, whichever of them got the
signal: JAX's coordination service chooses a step that none of them has passed.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

from crystal_jax.train.gce_maintenance import MaintenanceWatcher


class Preemption:
    """Listens for preemption in a `with` block; all processes call `reached(step)` once per step.

    It handles SIGTERM and, if Google's metadata server answers, announcements of maintenance and preemption. On other
    machines the missing server causes neither delay nor errors. GCE_METADATA_HOST sets another server.
    """

    def __init__(self):
        self._asked = threading.Event()
        self._before: Any = None
        self._several = jax.process_count() > 1
        # Python sets signal handlers only in the main thread; JAX's service has its own handler.
        self._listens = not self._several and threading.current_thread() is threading.main_thread()
        self._announcements = MaintenanceWatcher(self._announced)

    def __enter__(self) -> Preemption:
        if self._listens:
            self._before = signal.signal(signal.SIGTERM, self._note)
        self._announcements.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._announcements.__exit__(*exception)  # first: after this, no handler may receive SIGTERM
        if self._listens:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, _signal: int, _frame: FrameType | None) -> None:
        self._asked.set()

    def _announced(self) -> None:
        """Handles an announcement; called from the watcher's thread."""
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)  # the only notice that JAX's service forwards to the other processes
        else:
            self._asked.set()  # not SIGTERM, which has no handler if training is outside the main thread

    def reached(self, step: int) -> bool:
        """Whether this is the step after which to save and exit."""
        if self._several:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked.is_set()
