"""Atomic writes of files and folders, and the cache folder."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from crystal_jax.errors import UserError

LOCK = ".lock"  # name of the lock file in a folder that a process writes to
_TEMPORARY = ".part"  # suffix of temporary files and folders


def cache_folder() -> Path:
    """Returns the cache folder: $CRYSTAL_JAX_CACHE, or `crystal_jax` in the user's cache folder."""
    own = os.environ.get("CRYSTAL_JAX_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "crystal_jax"


def as_path(value: object, name: str) -> Path:
    """Converts an argument to a path; ~ is the home folder.

    Args:
        value: a string or a path.
        name: name of the argument, for the error message.

    Raises:
        UserError: the value has another type.
    """
    if not isinstance(value, str | os.PathLike):
        raise UserError(f"{name} is {value!r:.60}, of type {type(value).__name__}; it must be a path or a text")
    return Path(os.path.expanduser(os.fspath(value)))  # noqa: PTH111 - Path refuses ~nobody


def write_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8, atomically; see `write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file atomically, through a temporary file in the same folder; creates folders as needed.

    If writing fails, the temporary file is removed and `path` is unchanged.

    Raises:
        UserError: the folder cannot be written to, or the disk is full.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", suffix=_TEMPORARY, delete=False
        ) as file:
            temporary = Path(file.name)
            file.write(content)
        temporary.chmod(_mode(0o666))  # temporary files are private; results are not
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; {_remedy(error)}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder that is renamed to `path` at the end.

    After an error, the temporary folder is removed and `path` is unchanged.

    Args:
        path: a folder that does not exist yet, or is empty.

    Raises:
        UserError: the folder cannot be written to, or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        half = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=_TEMPORARY))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; {_remedy(error)}") from error
    try:
        yield half
        half.chmod(_mode(0o777))
        half.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; {_remedy(error)}") from error
    finally:
        shutil.rmtree(half, ignore_errors=True)


def is_new(folder: Path) -> bool:
    """Whether a folder is missing or empty, apart from the lock and temporary files of killed processes.

    A path that is a file is not new.
    """
    if not folder.is_dir():
        return not (folder.exists() or folder.is_symlink())
    return all(entry.name == LOCK or entry.name.endswith(_TEMPORARY) for entry in folder.iterdir())


def _mode(wanted: int) -> int:
    umask = os.umask(0)
    os.umask(umask)
    return wanted & ~umask


def _remedy(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free some space and run the command again"
    return "give another directory"
