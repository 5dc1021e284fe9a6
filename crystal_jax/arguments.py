"""Checks the arguments of the public functions, so that a wrong type is a sentence and not a traceback.

On the command line the flags' types do this; in Python a string where a list is meant would be taken letter by letter.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crystal_jax.errors import UserError


def path(name: str, value: Any) -> Path:
    """Returns a path, with the home folder for `~`.

    Raises:
        UserError: the value is neither text nor a path.
    """
    if not isinstance(value, str | os.PathLike):
        raise UserError(f"{name}={value!r} is no path; give a string or a pathlib.Path")
    return Path(value).expanduser()


def words(name: str, value: Any) -> list[str]:
    """Returns a list of words; a string may have several, separated by commas.

    Raises:
        UserError: the value is something else.
    """
    if isinstance(value, str):
        return [word.strip() for word in value.split(",") if word.strip()]
    if not isinstance(value, Sequence | set | frozenset) or not all(isinstance(word, str) for word in value):
        raise UserError(f"{name}={value!r} is no list of words; write it like {name}=['a', 'b']")
    return list(value)


def numbers(name: str, value: Any) -> list[float]:
    """Returns one number or several as a list.

    Raises:
        UserError: the value is something else.
    """
    several = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if not several or not all(isinstance(one, int | float) and not isinstance(one, bool) for one in several):
        raise UserError(f"{name}={value!r} is neither a number nor a list of numbers")
    return several


def whole(name: str, value: Any, *, least: int, most: int) -> int:
    """Returns a whole number within bounds.

    Raises:
        UserError: the value is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise UserError(f"{name}={value} must be a whole number from {least} to {most}")
    return value
