"""An output directory of one request: what was asked for, and rows that are appended as they are finished."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from crystal_jax.errors import UserError
from crystal_jax.files import write_text


def claim(directory: Path, request: Mapping[str, Any], made_by: Mapping[str, Any], *, what: str = "the output") -> None:
    """Makes the directory this request's, by its `run.json`, or checks that it already is; `what` stands in errors.

    Raises:
        UserError: it holds something else.
    """
    run = directory / "run.json"
    if run.exists():
        found, asked = json.loads(run.read_text())["request"], json.loads(json.dumps(dict(request)))  # tuples are lists
        if changed := [k for k in {**found, **asked} if found.get(k) != asked.get(k)]:
            raise UserError(
                f"{directory} holds {what} of another request (other {', '.join(changed)}); choose another --output"
            )
    elif directory.exists() and any(directory.iterdir()):
        raise UserError(f"{directory} is not empty and holds no run.json; choose another --output")
    write_text(run, json.dumps({"request": dict(request), "provenance": dict(made_by)}, indent=2) + "\n")


class Journal:
    """A file of JSON rows, one a line, that survives being stopped: a line that was cut off is dropped."""

    def __init__(self, path: Path):
        self.path = path
        if path.exists():
            text = path.read_text()
            write_text(path, text[: text.rfind("\n") + 1])

    def rows(self) -> list[dict[str, Any]]:
        """The rows written so far, in order."""
        return [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Adds rows; they are in the file when this returns."""
        with self.path.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
