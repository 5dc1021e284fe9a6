"""Locks an output folder for one process at a time, with a lock file that names host and process.

The operating system holds the lock (flock) and releases it when the process ends for any reason. So the lock file of a
process that was killed on this host has no effect. In a shared folder, the lock of another host is judged by its age:
the holder touches the file every minute, and a lock file not touched for ten minutes is stale.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import json
import os
import socket
import tempfile
import threading
from pathlib import Path

from crystal_jax.errors import UserError
from crystal_jax.storage.files import LOCK

_RENEWED_EACH, _STALE_AFTER = 60.0, 600.0  # s
_HELD: dict[Path, _Lock] = {}


class _Lock:
    """Held lock file, touched regularly by a thread."""

    def __init__(self, path: Path, descriptor: int):
        self._path, self._descriptor, self._ended = path, descriptor, threading.Event()
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"host": socket.gethostname(), "process": os.getpid()}).encode(), 0)
        threading.Thread(target=self._renew, daemon=True, name="lock").start()

    def _renew(self) -> None:
        while not self._ended.wait(_RENEWED_EACH):
            os.utime(self._descriptor)

    def release(self) -> None:
        self._ended.set()
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)


def lock(folder: Path) -> None:
    """Locks an existing folder for this process until `release` or the end of the process. Locking it again is allowed.

    Raises:
        UserError: another process holds the lock; the message names it.
    """
    path = folder.resolve() / LOCK
    if path in _HELD:
        return
    descriptor = _open(path)
    try:
        owned = _take(descriptor)
        while owned and not _is_at(path, descriptor):  # another process removed the file between the two calls
            os.close(descriptor)
            descriptor = _open(path)
            owned = _take(descriptor)
        holder = _holder(descriptor)
        if not owned or _is_alive(holder, path, descriptor):
            raise UserError(
                f"{folder} is being written by process {holder.get('process', '?')} on {holder.get('host', '?')}; wait "
                f"for it, or choose another --output. If that process is gone, delete {path}"
            )
        _HELD[path] = _Lock(path, descriptor)
    except BaseException:
        os.close(descriptor)
        raise


def release(folder: Path) -> None:
    """Releases a folder if this process has locked it."""
    if held := _HELD.pop(folder.resolve() / LOCK, None):
        held.release()


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; give another directory") from error


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file is still the file at its path."""
    return path.exists() and os.path.samestat(os.fstat(descriptor), path.stat())


def _take(descriptor: int) -> bool:
    """Tries to take the operating system's lock; returns True also if the file system does not support locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
    return True


def _holder(descriptor: int) -> dict[str, object]:
    """Reads the content of a lock file; empty if the file is new or damaged."""
    try:
        stated = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:
        return {}
    return stated if isinstance(stated, dict) else {}


def _is_alive(holder: dict[str, object], path: Path, descriptor: int) -> bool:
    """Whether a lock of another host is fresh. A lock of this host is not held, because the system's lock was free."""
    if not holder or holder.get("host") == socket.gethostname():
        return False
    with tempfile.TemporaryFile(dir=path.parent) as now:  # compares times by the file server's clock
        return os.fstat(now.fileno()).st_mtime - os.fstat(descriptor).st_mtime < _STALE_AFTER


@atexit.register
def _release_all() -> None:
    for held in list(_HELD.values()):
        held.release()
    _HELD.clear()
