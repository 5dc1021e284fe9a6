"""Results that are dear to compute, kept between runs on this machine: one SQLite file a kind."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Mapping

from crystal_jax.errors import UserError
from crystal_jax.files import cache_folder

_AT_ONCE = 500  # keys of one query; SQLite allows some thousand
_PATIENCE = 60.0  # s to wait for another process that writes


class Cache:
    """A file of values by the hash of what they were computed from; several processes may use it at a time."""

    def __init__(self, name: str):
        """Opens `name`.sqlite, which must change its name when the computation changes.

        Raises:
            UserError: the place cannot be written to.
        """
        path = cache_folder() / f"{name}.sqlite"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(path, timeout=_PATIENCE)
            with self._file:
                self._file.execute("CREATE TABLE IF NOT EXISTS found (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID")
        except (OSError, sqlite3.Error) as error:
            raise UserError(
                f"cannot use the cache {path} ({error}); set CRYSTAL_JAX_CACHE to another folder"
            ) from error

    def get(self, texts: Iterable[str]) -> dict[str, bytes]:
        """The values of those texts that are known."""
        keys = {_key(text): text for text in texts}
        wanted, found = list(keys), {}
        for begin in range(0, len(wanted), _AT_ONCE):
            some = wanted[begin : begin + _AT_ONCE]
            marks = ",".join("?" * len(some))
            rows = self._file.execute(f"SELECT key, value FROM found WHERE key IN ({marks})", some)
            found.update({keys[key]: value for key, value in rows})
        return found

    def put(self, values: Mapping[str, bytes]) -> None:
        """Keeps values by their texts; they are on disk when this returns."""
        with self._file:
            rows = [(_key(text), value) for text, value in values.items()]
            self._file.executemany("INSERT OR REPLACE INTO found VALUES (?, ?)", rows)

    def close(self) -> None:
        """Lets go of the file."""
        self._file.close()


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
