"""What Google's metadata server announces to a virtual machine: that the machine is about to be stopped.

VMs with TPUs or GPUs cannot move to another host, so maintenance stops them; spot VMs are pre-empted. Two keys of the
server say so before it happens, and a request for a key can wait until its value changes. Nobody else answers as
Google's server does, so elsewhere nothing happens.
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

# What each key says when the machine will be stopped. MIGRATE_ON_HOST_MAINTENANCE moves it while it runs.
ENDS = {"maintenance-event": "TERMINATE_ON_HOST_MAINTENANCE", "preempted": "TRUE"}
_HOST = "metadata.google.internal"  # where GCE_METADATA_HOST names no other, as for Google's own libraries
_TRIES = 3  # until it is believed that there is no such server
_ANSWER_SECONDS = 3.0  # within which a server that is there answers
_WAIT_SECONDS = 60  # that a request waits for a change
_PAUSE_SECONDS = 1.0  # between requests, were the server to answer at once each time, or not at all
_NO_ANSWER = (OSError, http.client.HTTPException, ValueError)  # the last one of host names that are none


class MaintenanceWatcher:
    """`with Announcements(tell):` calls `tell` when this machine's end is announced, and never after the block.

    All of it happens in threads of its own: the block begins and ends at once, and no error leaves them. `tell` may be
    called once for each key.

    What was announced before the block is only reported. Notice may be an hour long (GPUs), and a launcher that starts
    a run again on the same machine would else see it stop after its first step, again and again.
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
        with self._telling:  # a thread may be about to tell
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
            # The server is away for moments, most of all during maintenance: then it is asked again.
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
        """The key as it is now, or None where there is no such server."""
        for _ in range(_TRIES):
            with contextlib.suppress(*_NO_ANSWER):
                return _ask(key)
            if self._left.wait(_PAUSE_SECONDS):
                break
        return None


def _ask(key: str, *, after: str | None = None) -> tuple[str, str]:
    """A key's value and the etag of its state.

    Args:
        key: Below `instance/`.
        after: The etag of a state that is known: the answer comes when there is another, or after _WAIT_SECONDS.

    Raises:
        OSError, http.client.HTTPException, ValueError: no server answers, or not as Google's does.
    """
    known = None if after is None else dict(wait_for_change="true", timeout_sec=_WAIT_SECONDS, last_etag=after)
    host = os.environ.get("GCE_METADATA_HOST") or _HOST
    # Not urllib.request, which may go through a proxy: this server is the machine's own.
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
