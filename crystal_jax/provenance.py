"""Records the provenance of outputs: version, packages, machine. Every command writes it into its files."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import shlex
from collections.abc import Sequence
from typing import Any

from crystal_jax import __version__


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Returns the versions of this project, of Python and of the given packages."""
    own = {"crystal_jax": __version__, "python": platform.python_version()}
    return own | {name: importlib.metadata.version(name) for name in packages}


def provenance(packages: Sequence[str], **facts: Any) -> dict[str, Any]:
    """Returns the versions, the time (UTC), and any further facts."""
    return {
        "versions": versions(packages),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **facts,
    }


def command_line(command: str, flag_values: Any) -> str:
    """Returns a command with the given flags (of absl's `FlagValues`), quoted for a shell."""
    given = [flag_values[name] for name in flag_values if flag_values[name].present]
    return shlex.join(["crystal-jax", *command.split(), *dict.fromkeys(flag.serialize() for flag in given)])
