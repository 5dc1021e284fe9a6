"""Reads JSON files; for any content, errors are one line that names the file and the key.

`read_json` returns plain values and decodes nothing else. `JsonObject` gives typed access to an object's keys.
"""

from __future__ import annotations

import bz2
import dataclasses
import gzip
import json
import lzma
import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from crystal_jax.errors import UserError

_OPENERS: Mapping[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress,
    ".bz2": bz2.decompress,
    ".xz": lzma.decompress,
}
COMPRESSED = tuple(_OPENERS)
_LFS = b"version https://git-lfs"
_REQUIRED: Any = object()
_SHOWN = 60  # characters of a wrong value shown in a message


def stored_bytes(path: Path) -> bytes:
    """Returns the bytes of a file as stored.

    Raises:
        UserError: the file is missing, not regular, or a Git LFS pointer in place of the data.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is no regular file")
        content = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if content.startswith(_LFS):
        raise UserError(f"{path} is a pointer of Git LFS, not the data; fetch the data with 'git lfs pull'")
    return content


def read_bytes(path: Path) -> bytes:
    """Returns the content of a file, decompressed if its name ends in .gz, .bz2 or .xz.

    Raises:
        UserError: see `stored_bytes`; or the compressed data are damaged.
    """
    content = stored_bytes(path)
    try:
        return _OPENERS.get(path.suffix, bytes)(content)
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{path} is damaged: {error}") from error


def read_text(path: Path) -> str:
    """Returns the text of a file as `read_bytes` does; the encoding is UTF-8, with or without a byte-order mark.

    Raises:
        UserError: see `read_bytes`; or the text is not UTF-8.
    """
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is damaged: it is not UTF-8 text ({error.reason} at byte {error.start})") from error


def read_json(path: Path, *, advice: str = "") -> Any:
    """Returns the content of a JSON file as plain lists, dicts, strings and numbers.

    Args:
        path: the file; see `read_bytes` for compression.
        advice: how to repair a damaged file; it ends the message.

    Raises:
        UserError: the file is missing, damaged, or not JSON.
    """
    return parse_json(read_text(path), path, advice=advice)


def parse_json(text: str, path: Path, *, advice: str = "") -> Any:
    """Parses the JSON text of a file.

    Raises:
        UserError: the text is not JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        end = f"; {advice}" if advice else ""
        raise UserError(f"{path} is damaged: {_one_line(str(error))}{end}") from error


def read_object(path: Path, *, advice: str = "") -> JsonObject:
    """Returns the object of a JSON file.

    Raises:
        UserError: see `read_json`; or the file has another type of value.
    """
    return JsonObject.of(read_json(path, advice=advice), path, advice=advice)


def read_lines(path: Path, *, advice: str = "") -> list[JsonObject]:
    """Returns the objects of a file with one JSON object per line.

    A last line without a line end is skipped, because it is being written or its writer was stopped. Empty lines are
    skipped.

    Raises:
        UserError: see `read_text`; or an earlier line is damaged; the message has its number.
    """
    end = f"; {advice}" if advice else ""
    rows = []
    lines = read_text(path).split("\n")[:-1]
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is damaged at line {number}: {_one_line(str(error))}{end}") from error
        if not isinstance(value, dict):
            raise UserError(f"{path} is damaged at line {number}: it is {describe(value)}, not an object{end}")
        rows.append(JsonObject(value, path, f"line {number}: ", advice))
    return rows


@dataclasses.dataclass(frozen=True)
class JsonObject:
    """Object of a JSON file; each method checks the type of one key.

    A key with the value null counts as absent if there is a default.

    Attributes:
        content: the plain object.
        path: the file, for error messages.
        where: prefix of keys in error messages, such as "rope_scaling.".
        advice: how to repair the file; it ends each message.
    """

    content: Mapping[str, Any]
    path: Path
    where: str = ""
    advice: str = ""

    @classmethod
    def of(cls, value: Any, path: Path, where: str = "", advice: str = "") -> JsonObject:
        """Checks that a value is an object.

        Raises:
            UserError: it is another type of value.
        """
        if not isinstance(value, dict):
            place = f": {where.rstrip('. :')}" if where else ""
            end = f"; {advice}" if advice else ""
            raise UserError(f"{path}{place} is {describe(value)}, not an object{end}")
        return cls(value, path, where, advice)

    def __contains__(self, key: object) -> bool:
        return self.content.get(key) is not None if isinstance(key, str) else False

    def __iter__(self) -> Iterator[str]:
        return iter(self.content)

    def get(self, key: str, default: Any = None) -> Any:
        """Returns the value of a key, unchecked."""
        return self.content.get(key, default)

    def error(self, problem: str) -> UserError:
        """Returns an error about this object; its message starts with the file and ends with the advice."""
        end = f"; {self.advice}" if self.advice else ""
        return UserError(f"{self.path}: {problem}{end}")

    def integer(self, key: str, default: Any = _REQUIRED, *, least: int = -(2**63), most: int = 2**63 - 1) -> int:
        """Returns a whole number between two bounds.

        Raises:
            UserError: the key is missing, of another type, or out of bounds.
        """
        value = self._value(key, default)
        if value is default:
            return value
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole and isinstance(value, float) and math.isfinite(value) and value == int(value):
            value, whole = int(value), True
        if not whole:
            raise self.error(f"{self.where}{key} is {describe(value)}, not a whole number")
        if not least <= value <= most:
            bounds = f"at least {least}" if most >= 2**63 - 1 else f"between {least} and {most}"
            raise self.error(f"{self.where}{key} is {describe(value)}; it must be {bounds}")
        return value

    def number(self, key: str, default: Any = _REQUIRED, *, above: float = -math.inf) -> float:
        """Returns a finite number.

        Raises:
            UserError: the key is missing, of another type, not finite, or not above the bound.
        """
        value = self._value(key, default)
        if value is default:
            return value
        found = finite(value)
        if found is None:
            raise self.error(f"{self.where}{key} is {describe(value)}, not a finite number")
        if not found > above:
            raise self.error(f"{self.where}{key} is {describe(value)}; it must be above {above:g}")
        return found

    def boolean(self, key: str, default: Any = _REQUIRED) -> bool:
        """Returns true or false.

        Raises:
            UserError: the key is missing or of another type.
        """
        return self._typed(key, default, bool, "true or false")

    def text(self, key: str, default: Any = _REQUIRED) -> str:
        """Returns a string.

        Raises:
            UserError: the key is missing or of another type.
        """
        return self._typed(key, default, str, "a text")

    def items(self, key: str, default: Any = _REQUIRED) -> list[Any]:
        """Returns a list; its items are not checked.

        Raises:
            UserError: the key is missing or of another type.
        """
        return self._typed(key, default, list, "a list")

    def part(self, key: str, default: Any = _REQUIRED) -> JsonObject:
        """Returns a nested object; the default is a plain dict.

        Raises:
            UserError: the key is missing or of another type.
        """
        value = self._typed(key, default, dict, "an object")
        return JsonObject(value, self.path, f"{self.where}{key}.", self.advice)

    def _typed(self, key: str, default: Any, kind: type, name: str) -> Any:
        value = self._value(key, default)
        if value is not default and not isinstance(value, kind):
            raise self.error(f"{self.where}{key} is {describe(value)}, not {name}")
        return value

    def _value(self, key: str, default: Any) -> Any:
        value = self.content.get(key)
        if value is None:
            if default is not _REQUIRED:
                return default
            raise self.error(f"{self.where}{key} is {'null' if key in self.content else 'missing'}")
        return value


def finite(value: Any) -> float | None:
    """Returns a JSON value as a finite number, or None if it is not one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def finite_text(text: str) -> float:
    """Parses a finite number.

    Raises:
        ValueError: the text is not a finite number.
    """
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not finite")
    return number


def describe(value: Any) -> str:
    """Returns a short description of a JSON value for a message."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = "null" if value is None else repr(value) if isinstance(value, str | float) else _whole(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _whole(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if abs(value) < 10**_SHOWN else f"a number of more than {_SHOWN} digits"


def _one_line(text: str) -> str:
    return " ".join(text.split())
