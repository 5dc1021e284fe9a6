"""What the sections of a configuration check themselves with."""

from __future__ import annotations


def require(condition: bool, message: str) -> None:
    """Raises ValueError with the message unless the condition holds."""
    if not condition:
        raise ValueError(message)
