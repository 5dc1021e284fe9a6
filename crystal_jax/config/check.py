"""What the sections of a configuration check themselves with."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

LARGEST = 2**31 - 1  # of a size: indices on a device have 32 bits
MOST_LAYERS = 1024
_WORDS = {int: "a whole number", float: "a finite number", str: "a text", bool: "true or false"}
T = TypeVar("T")


def require(condition: bool, message: str) -> None:
    """Raises ValueError with the message unless the condition holds."""
    if not condition:
        raise ValueError(message)


def check_seed(name: str, seed: int) -> None:
    """Raises ValueError where JAX's keys, which have 32 bits, do not tell a seed from a smaller one."""
    require(0 <= seed < 2**32, f"{name}={seed} is not between 0 and {2**32 - 1}")


def build(section: type[T], name: str, values: Mapping[str, Any]) -> T:
    """Makes a section of a configuration from values whose types are unchecked, such as a JSON file's.

    Raises:
        TypeError: a field is missing or unknown.
        ValueError: a value has another type than its field, is not finite, or is impossible.
    """
    for field, kind in _fields(section).items():
        if field in values and not _is_of(values[field], kind):
            raise ValueError(f"{name}.{field} is {values[field]!r:.60}, not {_in_words(kind)}")
    return section(**values)


def _fields(section: type) -> Mapping[str, Any]:
    hints = typing.get_type_hints(section)
    return {field: kind for field, kind in hints.items() if typing.get_origin(kind) is not typing.ClassVar}


def _is_of(value: Any, kind: Any) -> bool:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return any(type(value) is type(choice) for choice in arguments)  # which one, the section says itself
    if origin in (types.UnionType, typing.Union):
        return any(_is_of(value, choice) for choice in arguments)
    if origin is tuple:
        return isinstance(value, tuple) and all(_is_of(member, arguments[0]) for member in value)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and _is_finite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    return not isinstance(kind, type) or isinstance(value, kind)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float can hold
        return False


def _in_words(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return f"a list whose members are each {_in_words(arguments[0])}"
    if origin in (types.UnionType, typing.Union):
        return " or ".join(map(_in_words, arguments))
    if origin is Literal:
        return "one of " + ", ".join(map(repr, arguments))
    return _WORDS.get(kind, "null" if kind is type(None) else str(kind))
