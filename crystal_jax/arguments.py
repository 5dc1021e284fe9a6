"""Checks the arguments of public functions, so that a wrong type gives a one-line error instead of a traceback.

On the command line the types of flags do this. In Python, a string in place of a list would be read letter by letter.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crystal_jax.errors import UserError


def path(name: str, value: Any) -> Path:
    """Converts a value to a path, with `~` as the home folder.

    Raises:
        UserError: the value is neither a string nor a path.
    """
    if not isinstance(value, str | os.PathLike):
        raise UserError(f"{name}={value!r} is no path; give a string or a pathlib.Path")
    return Path(value).expanduser()


def words(name: str, value: Any) -> list[str]:
    """Returns a list of words; a string may contain several, separated by commas.

    Raises:
        UserError: the value has another type.
    """
    if isinstance(value, str):
        return [word.strip() for word in value.split(",") if word.strip()]
    if not isinstance(value, Sequence | set | frozenset) or not all(isinstance(word, str) for word in value):
        raise UserError(f"{name}={value!r} is no list of words; write it like {name}=['a', 'b']")
    return list(value)


def numbers(name: str, value: Any) -> list[float]:
    """Returns one or several numbers as a list.

    Raises:
        UserError: the value has another type.
    """
    several = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if not several or not all(isinstance(one, int | float) and not isinstance(one, bool) for one in several):
        raise UserError(f"{name}={value!r} is neither a number nor a list of numbers")
    return several


def whole(name: str, value: Any, *, least: int, most: int) -> int:
    """Checks a whole number and its bounds.

    Raises:
        UserError: the value is not a whole number within the bounds.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise UserError(f"{name}={value} must be a whole number from {least} to {most}")
    return value
