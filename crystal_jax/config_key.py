"""Finds command-line overrides of keys that a configuration file lacks."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

_OVERRIDE = re.compile(r"--?config\.([\w.]+)")


def missing_key(arguments: Sequence[str]) -> str | None:
    """Returns a message about the first override of a key that the configuration lacks; None if all keys exist.

    ml_collections itself reports only the bare key.

    Args:
        arguments: a command line with `--config=FILE` and `--config.KEY=VALUE`.
    """
    file = next((argument.partition("=")[2] for argument in arguments if argument.startswith("--config=")), None)
    if file is None:
        return None
    flag_values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "The configuration.", flag_values=flag_values)
    # ml_collections reads overrides from sys.argv, not from the arguments being parsed.
    sys.argv, saved = ["", f"--config={file}"], sys.argv
    try:
        flag_values(sys.argv)
        config = flag_values.config
    except Exception:  # the file itself does not load, which is a different error
        return None
    finally:
        sys.argv = saved
    for argument in arguments:
        if (override := _OVERRIDE.match(argument)) and (sentence := _lacks(config, override[1], Path(file).name)):
            return sentence
    return None


def _lacks(config: ConfigDict, path: str, file: str) -> str | None:
    at = "config"
    for key in path.split("."):
        if not isinstance(config, ConfigDict):
            return f"{at} in {file} is a value, not a section: it has no {key}"
        if key not in config:
            return f"there is no {at}.{key} in {file}; it has: {', '.join(config)}"
        config, at = config[key], f"{at}.{key}"
    return None
