"""Manages the output directory of a run: `run.json` with the request, and JSONL logs that are appended to."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from crystal_jax.errors import UserError
from crystal_jax.json_files import read_lines, read_object
from crystal_jax.storage.files import is_new, write_bytes, write_text
from crystal_jax.storage.lock import lock, release

__all__ = ["JsonlLog", "ensure_same_run", "release"]

_RUN = "run.json"


def ensure_same_run(
    directory: Path, request: Mapping[str, Any], made_by: Mapping[str, Any], *, what: str = "the output"
) -> None:
    """Claims the directory for this request by writing its `run.json`, or checks that it belongs to it, and locks it.

    Args:
        directory: output directory; created if it does not exist. `release` unlocks it.
        request: settings that decide the output.
        made_by: provenance, such as versions.
        what: the directory's content, for error messages.

    Raises:
        UserError: the directory belongs to another request, another process writes to it, or it cannot be written to.
    """
    run = directory / _RUN
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {directory}: {error.strerror}; give another directory") from error
    lock(directory)
    try:
        _check(directory, run, request, what)
        content = {"request": dict(request), "provenance": dict(made_by)}
        write_text(run, json.dumps(content, indent=2) + "\n")
    except BaseException:
        release(directory)
        raise


def _check(directory: Path, run: Path, request: Mapping[str, Any], what: str) -> None:
    if run.exists():
        advice = f"what lies beside it is still whole: copy {what} elsewhere, and delete the folder"
        found = read_object(run, advice=advice).part("request").content
        asked = json.loads(json.dumps(dict(request)))  # converts tuples to lists, as in the file
        if changed := [key for key in {**found, **asked} if found.get(key) != asked.get(key)]:
            raise UserError(
                f"{directory} holds {what} of another request (other {', '.join(changed)}); choose another --output"
            )
    elif not is_new(directory):
        raise UserError(f"{directory} is not empty and holds no {_RUN}; choose another --output")


class JsonlLog:
    """JSONL file that survives interruptions: a truncated last line is dropped.

    Args:
        path: the file; it need not exist.
        fields: required fields of each row, with their types.
    """

    def __init__(self, path: Path, fields: Mapping[str, type] | None = None):
        self.path = path
        self._fields = fields or {}
        if path.exists():
            content = path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            if whole != content:
                write_bytes(path, whole)

    def rows(self) -> list[dict[str, Any]]:
        """Returns the rows in order; of rows with the same `index` only the first.

        Raises:
            UserError: the file is damaged; the message names the line.
        """
        if not self.path.exists():
            return []
        advice = "delete this line to have its row made again; the other lines are whole"
        rows: dict[Any, dict[str, Any]] = {}
        for number, row in enumerate(read_lines(self.path, advice=advice)):
            for field, kind in self._fields.items():
                found = row.get(field)
                if not isinstance(found, kind) or isinstance(found, bool):
                    raise row.error(f"{row.where}{field} is {found!r:.40}, not {_WORDS.get(kind, kind.__name__)}")
            key = row.integer("index", least=0) if "index" in row else f"line {number}"
            rows.setdefault(key, dict(row.content))
        return list(rows.values())

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Appends rows; they are in the file when this returns."""
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


_WORDS: Mapping[type, str] = {str: "a text", int: "a whole number", list: "a list"}
