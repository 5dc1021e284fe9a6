"""Copies a tokenizer's files along with its model."""

from __future__ import annotations

import shutil
from pathlib import Path

_FILES = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copies the tokenizer files that exist in a folder."""
    for name in _FILES:
        if (source / name).is_file():
            shutil.copy(source / name, target / name)
