"""Models that ship with the package, by name."""

from __future__ import annotations

from pathlib import Path

from crystal_jax.errors import UserError

_FOLDER = Path(__file__).resolve().parents[1] / "released"


def released() -> list[str]:
    """Their names; each has a model card, `README.md`, in its folder."""
    return sorted(path.parent.name for path in _FOLDER.glob("*/config.json"))


def locate(checkpoint: str | Path) -> Path:
    """The folder of a checkpoint: its path, or that of the released model of this name if there is no such path.

    Raises:
        UserError: there is neither.
    """
    path = Path(checkpoint)
    if path.exists():
        return path
    if str(checkpoint) in released():
        return _FOLDER / str(checkpoint)
    raise UserError(f"no checkpoint {checkpoint}: no such folder, and released models are: {', '.join(released())}")
