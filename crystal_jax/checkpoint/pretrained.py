"""Finds the pretrained models that the package contains, by name."""

from __future__ import annotations

from pathlib import Path

from crystal_jax.errors import UserError

_FOLDER = Path(__file__).resolve().parents[1] / "released"


def released() -> list[str]:
    """Returns the names of the models; each has a model card, `README.md`, in its folder."""
    return sorted(path.parent.name for path in _FOLDER.glob("*/config.json"))


def locate(checkpoint: str | Path) -> Path:
    """Returns the folder of a checkpoint: the path itself, or the released model of this name if the path does not
    exist.

    Raises:
        UserError: there is neither.
    """
    path = Path(checkpoint)
    if path.exists():
        return path
    if str(checkpoint) in released():
        return _FOLDER / str(checkpoint)
    raise UserError(f"no checkpoint {checkpoint}: no such folder, and released models are: {', '.join(released())}")
