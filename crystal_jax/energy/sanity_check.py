"""Checks that a model gives the expected energies of known compounds, each time a model is loaded.

A model can be loaded wrongly without an error. matgl from version 3 on reads M3GNet weights of earlier versions and
then gives right energies for elements but wrong ones for compounds. So the check uses compounds, never an element
alone. A model of another functional than PBE, on which the convex hull is based, fails too.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from pymatgen.core import Structure

from crystal_jax.energy.model import Cell, EnergyModel
from crystal_jax.errors import UserError

TOLERANCE = 0.1  # eV/atom; PBE potentials agree within 0.03 here, a wrongly loaded model is off by 2


class Known(NamedTuple):
    """Compound with its energies in eV/atom from M3GNet MP-2021.2.8-EFS: uncorrected and with MP2020 corrections."""

    formula: str
    structure: Structure
    raw: float
    corrected: float


def known() -> tuple[Known, ...]:
    """Returns the compounds of the check, in primitive cells."""
    origin, half = [0.0, 0.0, 0.0], [0.5, 0.5, 0.5]
    corner = np.ones((3, 3)) - np.eye(3)  # face-centred lattice, in units of half the cubic length
    salt = Structure(5.69 / 2 * corner, ["Na", "Cl"], [origin, half])
    magnesia = Structure(4.25 / 2 * corner, ["Mg", "O"], [origin, half])
    sites = [origin, half, [0.5, 0.5, 0.0], [0.5, 0.0, 0.5], [0.0, 0.5, 0.5]]
    titanate = Structure(3.94 * np.eye(3), ["Sr", "Ti", "O", "O", "O"], sites)
    return (
        Known("NaCl", salt, -3.3885, -3.6955),
        Known("MgO", magnesia, -5.9772, -6.3207),
        Known("SrTiO3", titanate, -8.0205, -8.4327),
    )


def check(model: EnergyModel, *, tolerance: float = TOLERANCE) -> None:
    """Compares the model's energies of the compounds of `known` with the expected ones.

    Raises:
        UserError: an energy differs by more than the tolerance (eV/atom).
    """
    compounds = known()
    for compound, prediction in zip(
        compounds, model.predict([Cell.of(compound.structure) for compound in compounds]), strict=True
    ):
        expected = compound.corrected if model.corrected else compound.raw
        found = prediction.energy / len(compound.structure)
        if not np.abs(found - expected) <= tolerance:
            raise UserError(
                f"{model.name} gives {found:.4f} eV/atom for {compound.formula}, PBE about {expected:.4f}: its weights "
                "are of another functional, or were loaded wrongly (matgl from 3 on misreads older M3GNet and "
                "TensorNet weights); use m3gnet or chgnet"
            )
