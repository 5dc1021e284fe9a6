"""Logs of relaxations: each process appends a row to a file of its own as soon as a crystal has finished."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from crystal_jax.energy.settings import RelaxJob
from crystal_jax.errors import UserError
from crystal_jax.json_files import read_bytes, read_object
from crystal_jax.storage.files import write_text


def key_of(cif: str) -> str:
    """Returns the key of a crystal in the logs: the SHA-256 of its CIF."""
    return hashlib.sha256(cif.encode()).hexdigest()


def read_journals(folder: Path) -> dict[str, dict[str, Any]]:
    """Reads all rows by key. Truncated or damaged lines are skipped; their crystals are relaxed again."""
    rows: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for line in read_bytes(path).splitlines():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            key = row.get("key") if isinstance(row, dict) else None
            if isinstance(key, str) and isinstance(row.get("relaxed_cif"), str | None):
                rows[key] = row
    return rows


def claim(folder: Path, job: RelaxJob) -> None:
    """Records the job in the folder of its logs.

    Raises:
        UserError: the folder belongs to another job.
    """
    path = folder / "job.json"
    asked = dataclasses.asdict(job) | {"weights": ""}  # the same weights may be in another folder
    if path.exists():
        found = read_object(path, advice=f"delete the folder {folder} to relax again")
        if changed := [name for name in asked if asked[name] != found.get(name)]:
            raise UserError(
                f"{folder} holds relaxations of another {', '.join(changed)}; choose another --output, or delete it"
            )
        return
    write_text(path, json.dumps(asked, indent=2) + "\n")


@contextlib.contextmanager
def journal(folder: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Opens this process's own log file and yields a function that writes a row at once."""
    path = folder / f"{socket.gethostname()}-{os.getpid()}.jsonl"
    with path.open("a", encoding="utf-8") as file:
        if path.stat().st_size:
            file.write("\n")  # ends a partial line of an earlier process with the same id

        def write(row: Mapping[str, Any]) -> None:
            file.write(json.dumps(row) + "\n")
            file.flush()

        yield write
