"""Caches expensive results between runs on this machine, in one SQLite file per type of result."""

from __future__ import annotations

import hashlib
import sqlite3
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from crystal_jax.errors import UserError
from crystal_jax.storage.files import cache_folder

_AT_ONCE = 500  # keys per query; SQLite allows a few thousand
_PATIENCE = 60.0  # s to wait for another writer


class Cache:
    """Cache file of values, keyed by the hash of their input. Several processes may use it at the same time.

    A damaged file is deleted and created again, because all of its values can be recomputed.
    """

    def __init__(self, name: str):
        """Opens `name`.sqlite. The name must change when the computation changes.

        Raises:
            UserError: the cache folder cannot be written to.
        """
        self._path = cache_folder() / f"{name}.sqlite"
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._file = _open(self._path)
            except sqlite3.OperationalError:  # the file is locked or read-only
                raise
            except sqlite3.DatabaseError as error:
                self._make_anew(error)
        except (OSError, sqlite3.Error) as error:
            raise self._unusable(error) from error

    def get(self, texts: Iterable[str]) -> dict[str, bytes]:
        """Returns the values of the texts that are in the cache.

        Raises:
            UserError: the file cannot be read.
        """
        keys = {_key(text): text for text in texts}
        wanted, found = list(keys), {}
        try:
            for begin in range(0, len(wanted), _AT_ONCE):
                some = wanted[begin : begin + _AT_ONCE]
                marks = ",".join("?" * len(some))
                rows = self._file.execute(f"SELECT key, value FROM found WHERE key IN ({marks})", some)
                found.update({keys[key]: value for key, value in rows if isinstance(value, bytes)})
        except sqlite3.OperationalError as error:
            raise self._unusable(error) from error
        except sqlite3.DatabaseError as error:
            self._make_anew(error)
            return {}
        return found

    def put(self, values: Mapping[str, bytes]) -> None:
        """Stores values by their texts; they are on disk when this returns.

        Raises:
            UserError: the file cannot be written, or the disk is full.
        """
        rows = [(_key(text), value) for text, value in values.items()]
        try:
            with self._file:
                self._file.executemany("INSERT OR REPLACE INTO found VALUES (?, ?)", rows)
        except sqlite3.OperationalError as error:
            raise self._unusable(error) from error
        except sqlite3.DatabaseError as error:
            self._make_anew(error)
            with self._file:
                self._file.executemany("INSERT OR REPLACE INTO found VALUES (?, ?)", rows)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _make_anew(self, error: sqlite3.Error) -> None:
        print(f"the cache {self._path} is damaged ({error}): it is deleted and made anew", file=sys.stderr)
        if hasattr(self, "_file"):
            self._file.close()
        for ending in ("", "-journal", "-wal", "-shm"):
            self._path.with_name(f"{self._path.name}{ending}").unlink(missing_ok=True)
        self._file = _open(self._path)

    def _unusable(self, error: Exception) -> UserError:
        return UserError(f"cannot use the cache {self._path} ({error}); set CRYSTAL_JAX_CACHE to another folder")


def _open(path: Path) -> sqlite3.Connection:
    file = sqlite3.connect(path, timeout=_PATIENCE)
    try:
        with file:
            file.execute("CREATE TABLE IF NOT EXISTS found (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID")
        file.execute("SELECT key, value FROM found LIMIT 1")  # fails if a table of this name has other columns
    except sqlite3.OperationalError as error:
        file.close()
        if "no such column" in str(error):
            raise sqlite3.DatabaseError(str(error)) from error
        raise
    except sqlite3.DatabaseError:
        file.close()
        raise
    return file


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()
