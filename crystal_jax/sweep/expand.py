"""Expands a sweep file to its runs.

A sweep file has `CONFIG`, a configuration as for `train --config`, and `get_sweep()`, which returns a list of
overrides, each a dict from dotted keys to values. `grid` makes a list of all combinations. If CONFIG has no variant,
the key `variant` selects one for each run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from crystal_jax.config import from_config_dict
from crystal_jax.errors import UserError

Overrides = Mapping[str, Any]

_LONGEST_NAME = 100  # characters of a folder name
_ANY_VOCABULARY = 10**6  # replaces the tokenizer's vocabulary size; the configuration is only checked


def grid(axes: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Returns all combinations of the values of some keys; the last key changes fastest."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


@dataclasses.dataclass(frozen=True)
class Run:
    """Run of a sweep.

    Attributes:
        name: description of its overrides, and name of its workdir. It depends only on the overrides, so that a sweep
            can be extended.
        config: the configuration, FILE.py or FILE.py:variant.
        overrides: values by dotted key of the configuration.
    """

    name: str
    config: str
    overrides: Overrides

    def flags(self) -> list[str]:
        """Returns the flags for `crystal-jax train`, except the workdir."""
        return [f"--config={self.config}", *(f"--config.{key}={value}" for key, value in self.overrides.items())]


def load_sweep(path: Path, common: Overrides | None = None) -> list[Run]:
    """Returns the runs of a sweep file, after checking each against its configuration.

    Args:
        path: the sweep file.
        common: overrides of all runs; they are not part of the names.

    Raises:
        UserError: the file or its configuration does not load, a key does not exist, or a value is not allowed.
    """
    module = load_module(path)
    config = getattr(module, "CONFIG", None)
    if not isinstance(config, str) or not callable(getattr(module, "get_sweep", None)):
        raise UserError(f"{path} is no sweep: it needs CONFIG = 'FILE.py' and a function get_sweep()")
    try:
        found = list(module.get_sweep())
    except Exception as error:  # it is code, and may raise anything
        raise UserError(f"{path}: get_sweep() fails: {_first_line(error)}") from error
    if wrong := [each for each in found if not isinstance(each, Mapping) or not all(isinstance(k, str) for k in each)]:
        raise UserError(f"{path}: get_sweep() has {wrong[0]!r:.60}, which is no dict from keys to values")
    runs = [_run(config, each, common or {}) for each in found]
    if not runs:
        raise UserError(f"{path}: get_sweep() returns no runs")
    for run in runs:
        _check(run)
    if twice := sorted(name for name in {run.name for run in runs} if sum(r.name == name for r in runs) > 1):
        raise UserError(f"{path}: get_sweep() has the same run twice: {twice[0]}")
    return runs


def _run(config: str, each: Overrides, common: Overrides) -> Run:
    overrides = dict(each)
    variant = overrides.pop("variant", None)
    return Run(_name(each), f"{config}:{variant}" if variant else config, {**overrides, **common})


def _check(run: Run) -> None:
    file, _, variant = run.config.partition(":")
    module = load_module(Path(file))
    try:
        config = module.get_config(variant) if variant else module.get_config()
        config.update_from_flattened_dict(run.overrides)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{run.config} with {run.name}: {_first_line(error)}") from error
    from_config_dict(config.to_dict(), vocab_size=_ANY_VOCABULARY)


def load_module(path: Path) -> ModuleType:
    """Loads a Python file outside any package: a sweep or a configuration.

    Raises:
        UserError: the file does not exist, or raises an error.
    """
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UserError(f"{path}: no such Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # it is code, and may raise anything
        raise UserError(f"{path} does not load: {_first_line(error)}") from error
    return module


def _name(overrides: Overrides) -> str:
    """Returns keys and values as a file name; keys are without their sections if they are unique."""
    short = [key.rpartition(".")[2] for key in overrides]
    keys = short if len(set(short)) == len(short) else list(overrides)
    text = ",".join(f"{key}={value}" for key, value in zip(keys, overrides.values(), strict=True)) or "default"
    name = re.sub(r"[^\w.=,+-]+", "-", text)
    if len(name) <= _LONGEST_NAME:
        return name
    return f"{name[: _LONGEST_NAME - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _first_line(error: Exception) -> str:
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error).strip().splitlines()
    return text[0] if text else type(error).__name__
