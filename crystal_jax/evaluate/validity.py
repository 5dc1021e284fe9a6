"""The two validity checks of the paper: atoms keep their distance, and charges can balance (as in CDVAE)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from pymatgen.core import Composition, Element, Structure

from crystal_jax.evaluate.oxidation import OxidationTable

MIN_DISTANCE = 0.5  # Å between two different sites; CDVAE, `structure_validity`
MIN_VOLUME = 0.1  # Å^3 of the cell; CDVAE, `structure_validity`


def structural_fault(structure: Structure) -> str | None:
    """Says why a structure is impossible, or None if it is not.

    The distance is the shortest between two different sites over all periodic images. As in CDVAE, an atom is
    not compared with its own images, so that a cell of one atom can fail by its volume only.
    """
    if not structure.volume >= MIN_VOLUME:
        return f"cell volume below {MIN_VOLUME} Å^3"
    try:
        distances = structure.distance_matrix  # Å, (n, n), zeros on the diagonal
    except np.linalg.LinAlgError:
        return "the lattice forms no cell"
    if len(structure) > 1 and not distances[~np.eye(len(structure), dtype=bool)].min() >= MIN_DISTANCE:
        return f"two atoms closer than {MIN_DISTANCE} Å"
    return None


def compositional_fault(composition: Composition, table: OxidationTable) -> str | None:
    """Says why a composition is implausible by the SMACT rule, or None if it is plausible.

    Elements and alloys of metals are plausible; anything else must balance its charges (see `oxidation`).
    """
    counts = reduced_counts(composition)
    if len(counts) == 1 or table.metals.issuperset(counts) or table.is_balanced(counts):
        return None
    return "no oxidation states balance"


def reduced_counts(composition: Composition) -> Mapping[str, int]:
    """Atoms of each element, in the order of atomic numbers, divided by their greatest common divisor."""
    atoms: dict[int, int] = {}
    for specie, amount in composition.items():
        atoms[specie.Z] = atoms.get(specie.Z, 0) + round(amount)
    divisor = math.gcd(*atoms.values())
    return {Element.from_Z(z).symbol: atoms[z] // divisor for z in sorted(atoms)}
