"""Files that are written whole or not at all, and where those are that save a later run some work."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from crystal_jax.errors import UserError


def cache_folder() -> Path:
    """Where results and fetched files are kept: $CRYSTAL_JAX_CACHE, or `crystal_jax` in the user's cache folder."""
    own = os.environ.get("CRYSTAL_JAX_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "crystal_jax"


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path` through a temporary file beside it, making folders as needed.

    Raises:
        UserError: the place cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", newline="", dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            file.write(text)
        umask = os.umask(0)
        os.umask(umask)
        Path(file.name).chmod(0o666 & ~umask)  # a temporary file is private, a result is not
        Path(file.name).replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; give another directory") from error
