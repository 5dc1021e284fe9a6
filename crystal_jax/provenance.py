"""What made an output: version, packages, machine. Written into every file that a command leaves behind."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
from collections.abc import Sequence
from typing import Any

from crystal_jax import __version__


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of this project, of Python and of the given packages."""
    own = {"crystal_jax": __version__, "python": platform.python_version()}
    return own | {name: importlib.metadata.version(name) for name in packages}


def provenance(packages: Sequence[str], **facts: Any) -> dict[str, Any]:
    """The versions, the time (UTC), and any further facts."""
    return {
        "versions": versions(packages),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **facts,
    }
