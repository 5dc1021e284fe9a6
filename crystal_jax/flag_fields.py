"""Command-line flags from the fields of a frozen dataclass, so that name, default and help are written once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from absl import flags

from crystal_jax.errors import UserError


def setting(
    default: Any,
    text: str,
    *,
    choices: Sequence[str] = (),
    several: type | None = None,
    bounds: tuple[float | None, float | None] = (None, None),
    flag: str | None = None,
) -> Any:
    """Returns a dataclass field that is also a flag.

    Args:
        default: The field's default; None for a flag that is not given.
        text: Help of the flag.
        choices: The values that are allowed, of a string.
        several: The flag is a list, separated by commas, of this type: str or float.
        bounds: The least and the greatest value of a number; None where there is none.
        flag: Name of the flag, if it is not that of the field.
    """
    metadata = {"help": text, "choices": tuple(choices), "several": several, "bounds": bounds, "flag": flag}
    return dataclasses.field(default=default, metadata=metadata)


def define(flag_values: flags.FlagValues, config: type, *, names: Sequence[str] | None = None) -> None:
    """Defines a flag for each field that `setting` made, inherited ones last; `names` selects some, in its order."""
    fields = {field.name: field for field in dataclasses.fields(config) if "help" in field.metadata}
    own = [name for name in fields if name in config.__annotations__]
    for name in names or [*own, *(name for name in fields if name not in own)]:
        _define(flag_values, fields[name])


def _define(flag_values: flags.FlagValues, field: dataclasses.Field) -> None:
    name, text = _flag(field), field.metadata["help"]
    default: Any = field.default
    kind = str(field.type).removesuffix(" | None")
    least, most = field.metadata["bounds"]
    if field.metadata["several"]:
        several = default if isinstance(default, Sequence) else [default]
        given = None if default is None else [str(value) for value in several]
        flags.DEFINE_list(name, given, text, flag_values=flag_values)
    elif choices := field.metadata["choices"]:
        flags.DEFINE_enum(name, default, list(choices), text, flag_values=flag_values)
    elif kind == "bool":
        flags.DEFINE_bool(name, default, text, flag_values=flag_values)
    elif kind == "int":
        flags.DEFINE_integer(name, default, text, lower_bound=least, upper_bound=most, flag_values=flag_values)
    elif kind == "float":
        flags.DEFINE_float(name, default, text, lower_bound=least, upper_bound=most, flag_values=flag_values)
    else:
        flags.DEFINE_string(name, default, text, flag_values=flag_values)


def given(flag_values: flags.FlagValues, config: type) -> dict[str, Any]:
    """Returns the value of each field that is a flag, lists of numbers as numbers.

    Raises:
        UserError: a list of numbers has something else in it.
    """
    found = {}
    for field in dataclasses.fields(config):
        if "help" in field.metadata and (name := _flag(field)) in flag_values:
            value: Any = flag_values[name].value
            found[field.name] = _numbers(name, value) if field.metadata["several"] is float else value
    return found


def _flag(field: dataclasses.Field) -> str:
    return field.metadata["flag"] or field.name


def _numbers(name: str, texts: Sequence[str]) -> list[float]:
    try:
        return [float(text) for text in texts]
    except ValueError:
        raise UserError(f"--{name}={','.join(texts)} is no list of numbers") from None
