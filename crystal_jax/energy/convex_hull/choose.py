"""Chooses the hull that energies of a potential are compared with."""

from __future__ import annotations

from pathlib import Path

from crystal_jax.energy.convex_hull.embedded import embedded_hull
from crystal_jax.energy.convex_hull.hull import Hull, read_hull
from crystal_jax.errors import UserError


def choose_hull(energy_model: str, path: Path | str | None, elements: Path | str | None) -> Hull | None:
    """Returns the hull in a file, or else the package's hull of the potential, if it has one.

    Args:
        energy_model: name of the potential, as in `load_model`.
        path: see `read_hull`; None for the package's hull.
        elements: see `read_hull`.

    Raises:
        UserError: the file is missing or damaged, or its energies are of another potential.
    """
    if path is None:
        return embedded_hull(energy_model)
    hull = read_hull(path, elements=elements)
    if hull.energy_model not in (None, energy_model):
        raise UserError(
            f"{path}: its energies are of {hull.energy_model}, not of {energy_model}, so their errors do not cancel; "
            f"make one with 'crystal-jax hull --energy_model={energy_model}'"
        )
    return hull
