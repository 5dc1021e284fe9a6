"""Watches Google's metadata server for announcements that this virtual machine will be stopped.

VMs with TPUs or GPUs cannot migrate to another host, so maintenance stops them; spot VMs are preempted. Two keys of the
metadata server announce this in advance, and a request for a key can wait until its value changes. On other machines no
such server answers, and nothing happens.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import sys
import threading
from collections.abc import Callable
from urllib.parse import urlencode

from tqdm import tqdm

# Value of each key that announces a stop. MIGRATE_ON_HOST_MAINTENANCE is a live migration, not a stop.
ENDS = {"maintenance-event": "TERMINATE_ON_HOST_MAINTENANCE", "preempted": "TRUE"}
_HOST = "metadata.google.internal"  # default; GCE_METADATA_HOST overrides it, as in Google's own libraries
_TRIES = 3  # failed requests after which the server is taken as absent
_ANSWER_SECONDS = 3.0  # timeout of a request
_WAIT_SECONDS = 60  # longest time that a request waits for a change
_PAUSE_SECONDS = 1.0  # between requests, in case the server answers at once or not at all
_NO_ANSWER = (OSError, http.client.HTTPException, ValueError)  # ValueError for invalid host names


class MaintenanceWatcher:
    """Calls `tell` when a stop of this machine is announced: `with MaintenanceWatcher(tell):`. It is not called after
    the block.

    The watcher uses threads of its own: the block starts and ends without delay, and no error leaves the threads.
    `tell` may be called once per key.

    Announcements already active at entry are only logged. Notice may be given an hour ahead (GPUs), and a job that is
    restarted on the same machine would otherwise stop again after its first step.
    """

    def __init__(self, tell: Callable[[], None]):
        self._tell = tell
        self._left = threading.Event()
        self._telling = threading.Lock()

    def __enter__(self) -> MaintenanceWatcher:
        for key, end in ENDS.items():
            threading.Thread(target=self._watch, args=(key, end), name=f"metadata {key}", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._telling:  # a thread may be about to call `tell`
            self._left.set()

    def _watch(self, key: str, end: str) -> None:
        first = self._first(key)
        if first is None:
            return
        value, etag = first
        stands = value == end
        if stands:
            _say(f"{key} has been {end} since before this run; it goes on until SIGTERM")
        while not self._left.is_set():
            # The server is unavailable at times, mostly during maintenance, so failed requests are retried.
            with contextlib.suppress(*_NO_ANSWER):
                value, etag = _ask(key, after=etag)
                if value == end and not stands:
                    break
                stands = value == end
            self._left.wait(_PAUSE_SECONDS)
        with self._telling:
            if not self._left.is_set():
                self._tell()
                _say(f"{key} is {end}; saving and leaving")

    def _first(self, key: str) -> tuple[str, str] | None:
        """Returns the current value and etag of the key, or None if there is no such server."""
        for _ in range(_TRIES):
            with contextlib.suppress(*_NO_ANSWER):
                return _ask(key)
            if self._left.wait(_PAUSE_SECONDS):
                break
        return None


def _ask(key: str, *, after: str | None = None) -> tuple[str, str]:
    """Requests a key; returns its value and the etag of its state.

    Args:
        key: name below `instance/`.
        after: etag of a known state; the server answers when the state changes, or after _WAIT_SECONDS.

    Raises:
        OSError, http.client.HTTPException, ValueError: no server answers, or it is not Google's.
    """
    known = None if after is None else dict(wait_for_change="true", timeout_sec=_WAIT_SECONDS, last_etag=after)
    host = os.environ.get("GCE_METADATA_HOST") or _HOST
    # Not urllib.request, which may use a proxy: the metadata server is local to the machine.
    connection = http.client.HTTPConnection(host, timeout=_ANSWER_SECONDS + (_WAIT_SECONDS if known else 0))
    with contextlib.closing(connection):
        path = f"/computeMetadata/v1/instance/{key}" + (f"?{urlencode(known)}" if known else "")
        connection.request("GET", path, headers={"Metadata-Flavor": "Google"})
        answer = connection.getresponse()
        if answer.status != 200 or answer.getheader("Metadata-Flavor") != "Google":
            raise http.client.HTTPException(f"{host} answers {answer.status}")
        return answer.read(100).decode(errors="replace").strip(), answer.getheader("ETag", "0")


def _say(line: str) -> None:
    tqdm.write(f"Google's metadata server: {line}", file=sys.stderr)  # above the progress bar
