"""Finds Nequix-OAM's weights: in a given file or folder, in the cache, or in the repository of the project Nequix.

The file is `models/nequix-oam-1.nqx` of atomicarchitects/nequix (MIT). Its SHA-256 hash is checked in all three cases.
"""

from __future__ import annotations

import hashlib
import sys
import urllib.request
from pathlib import Path

from crystal_jax.errors import UserError
from crystal_jax.json_files import stored_bytes
from crystal_jax.storage.files import as_path, cache_folder, write_bytes

FILE = "nequix-oam-1.nqx"
SHA256 = "6a43475eaeb32a7a049f36c1306d78aa1e7a17e8af37aeda7901c8fec0ca845c"
URL = f"https://github.com/atomicarchitects/nequix/raw/9c852a9c4cce69ae5e75bc5a2cf670be21ff8c28/models/{FILE}"
_TIMEOUT = 60  # seconds without an answer


def nequix_file(path: Path | str | None = None) -> Path:
    """Returns the file with the weights, after checking its hash.

    Args:
        path: the file, or its folder; by default it is looked for in the cache, and downloaded into it if missing.

    Raises:
        UserError: the file is missing or differs from the published one, or the download fails.
    """
    if path is not None:
        path = as_path(path, "weights")
        file = path / FILE if path.is_dir() else path
        advice = f"give --energy_weights the file {FILE}, or leave it out to fetch it"
        if not file.is_file():
            raise UserError(f"{file} is missing; {advice}")
        _check(stored_bytes(file), str(file), advice)
        return file
    file = cache_folder() / "nequix" / FILE
    if not file.exists():
        _fetch(file)
    _check(stored_bytes(file), str(file), "delete it to fetch it again")
    return file


def _check(content: bytes, name: str, advice: str) -> None:
    """Checks the hash of the file.

    Raises:
        UserError: the content differs from the published file; the message ends with `advice`.
    """
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise UserError(f"{name} is not the published {FILE}: its SHA-256 is {found}; {advice}")


def _fetch(file: Path) -> None:
    """Downloads the file; a wrong one is not kept.

    Raises:
        UserError: the download fails; the message says what to do by hand.
    """
    print(f"fetching Nequix's weights ({FILE}, 3 MB, from {URL}) into {file.parent}", file=sys.stderr)
    advice = f"download {URL} elsewhere and put it at {file}, or pass --energy_weights=FILE"
    try:
        with urllib.request.urlopen(URL, timeout=_TIMEOUT) as answer:
            content = answer.read()
    except OSError as error:  # URLError is one
        raise UserError(f"Nequix's weights cannot be fetched ({error}); {advice}") from error
    _check(content, URL, advice)
    write_bytes(file, content)
