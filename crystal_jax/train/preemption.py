"""Being asked to leave: SIGTERM, which clouds and schedulers send some seconds before they take a machine away.

Google also announces it (`train/gce_maintenance.py`), a minute before maintenance, and that counts as the signal.

One process notes the signal. Several have to stop at the same step, whoever was asked first: JAX's coordination
service finds one that none of them has passed.
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
    """`with Preemption() as preemption:` listens; `preemption.reached(step)` is asked once a step, by all processes.

    It listens to SIGTERM, and, where Google's metadata server answers, to the announcements of maintenance and
    pre-emption; elsewhere that server costs neither time nor errors. GCE_METADATA_HOST names another one.
    """

    def __init__(self):
        self._asked = threading.Event()
        self._before: Any = None
        self._several = jax.process_count() > 1
        # Python can only set handlers in the main thread; JAX's service listens by itself.
        self._listens = not self._several and threading.current_thread() is threading.main_thread()
        self._announcements = MaintenanceWatcher(self._announced)

    def __enter__(self) -> Preemption:
        if self._listens:
            self._before = signal.signal(signal.SIGTERM, self._note)
        self._announcements.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._announcements.__exit__(*exception)  # first: from here on, nobody may take a SIGTERM
        if self._listens:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, _signal: int, _frame: FrameType | None) -> None:
        self._asked.set()

    def _announced(self) -> None:
        """Called from a thread."""
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)  # the one notice that JAX's service takes and hands on to the others
        else:
            self._asked.set()  # not by the signal, which has no handler where training is not in the main thread

    def reached(self, step: int) -> bool:
        """Whether this is the step after which to save and leave."""
        if self._several:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked.is_set()
