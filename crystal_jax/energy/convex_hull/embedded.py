"""The hulls in the package: energies of known materials, relaxed with the potential that is asked about.

`crystal_jax/energy/hulls/MODEL/` has the table, which 'crystal-jax hull' wrote, and a card with source, licence,
settings and the command.
"""

from __future__ import annotations

import functools
from pathlib import Path

from crystal_jax.energy.convex_hull.hull import FILE, Hull, read_hull

_HULLS = Path(__file__).parents[1] / "hulls"


def embedded_path(energy_model: str) -> Path | None:
    """Returns the table of a potential's hull; None if the package has none for it."""
    path = _HULLS / energy_model / FILE
    return path if ":" not in energy_model and path.is_file() else None


@functools.cache
def embedded_hull(energy_model: str) -> Hull | None:
    """Returns a potential's hull; None if the package has none for it."""
    path = embedded_path(energy_model)
    return None if path is None else read_hull(path)
