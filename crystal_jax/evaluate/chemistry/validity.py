"""Implements the paper's two validity checks (as in CDVAE), and a stricter chemical plausibility check.

CDVAE's structural check only requires 0.5 Å between atoms, so lithium and sulfur 0.9 Å apart pass. The stricter check
scales with the atoms: no two atoms are closer than a share of the sum of their covalent radii, and the cell is not much
larger than its atoms. Its constants are chosen so that real crystals pass. Of the 15,491 crystals of mp20_open, 0.15 %
have atoms closer than 0.70 of the sum of radii (all but two contain U, Np, Pu or Ce), and 0.10 % have a cell of more
than twice the volume of their van der Waals spheres (layers far apart, solid HI3, Xe); together 0.25 %.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping

import numpy as np
from jaxtyping import Float
from pymatgen.core import Composition, Element, Structure
from pymatgen.core.molecule_structure_comparator import CovalentRadius

from crystal_jax.evaluate.chemistry.oxidation import OxidationTable
from crystal_jax.suppress_warnings import quiet

MIN_DISTANCE = 0.5  # Å between two different sites; CDVAE, `structure_validity`
MIN_VOLUME = 0.1  # Å^3 of the cell; CDVAE, `structure_validity`
MIN_RADIUS_FACTOR = 0.7  # smallest distance of two atoms, in units of the sum of their covalent radii
_USUAL_RADIUS = 2.4  # Å, van der Waals; for the few elements without a known one, taken from the actinides beside them
MAX_VOLUME_FACTOR = 2.0  # largest volume of a cell, in units of the volume of its van der Waals spheres


def structural_invalid_reason(structure: Structure) -> str | None:
    """Returns why a structure is invalid, or None if it is valid.

    The distance is the shortest between two different sites over all periodic images. As in CDVAE, an atom is not
    compared with its own images, so a cell of one atom can fail only by its volume.
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


def implausible_reason(structure: Structure) -> str | None:
    """Returns which chemical limit a structure violates, or None.

    Covalent radii are those of Cordero et al. (Dalton Trans. 2008, 2832) and van der Waals radii those of Alvarez
    (Dalton Trans. 2013, 8617), as in pymatgen. An atom's own images count as other atoms.
    """
    symbols = [site.specie.symbol for site in structure]
    try:
        distances = interatomic_distances(structure)
    except np.linalg.LinAlgError:
        return "the lattice forms no cell"
    radii = np.array([covalent_radius(symbol) for symbol in symbols])
    factors = distances / np.maximum(radii[:, None] + radii[None], 1e-9)
    i, j = np.unravel_index(factors.argmin(), factors.shape)
    if not factors[i, j] >= MIN_RADIUS_FACTOR:
        first, second = sorted((symbols[i], symbols[j]))
        return f"atoms too close for their radii: {first}-{second} {distances[i, j]:.2f} Å"
    if not structure.volume <= MAX_VOLUME_FACTOR * sphere_volume(symbols):
        return f"cell mostly empty: {structure.volume / len(symbols):.0f} Å^3 an atom"
    return None


def interatomic_distances(structure: Structure) -> Float[np.ndarray, "n n"]:
    """Returns the shortest distances in Å of all pairs of sites over all images; for one site, to its nearest image."""
    distances = np.array(structure.distance_matrix)
    np.fill_diagonal(distances, shortest_vector(structure.lattice.get_lll_reduced_lattice().matrix))
    return distances


def shortest_vector(matrix: Float[np.ndarray, "3 3"]) -> float:
    """Returns the length of the shortest vector of a reduced lattice; its coefficients are -1, 0 or 1."""
    grid = np.stack(np.meshgrid(*3 * [[-1, 0, 1]]), axis=-1).reshape(-1, 3)
    return float(np.linalg.norm(grid[grid.any(axis=1)] @ matrix, axis=1).min())


def covalent_radius(symbol: str) -> float:
    """Returns an element's covalent radius in Å; 0 if it is unknown (beyond curium)."""
    return CovalentRadius.radius.get(symbol, 0.0)


def sphere_volume(symbols: Iterable[str]) -> float:
    """Returns the volume in Å^3 of the van der Waals spheres of these atoms."""
    return sum(_sphere_volume_of(symbol) for symbol in symbols)


@functools.cache
@quiet()
def _sphere_volume_of(symbol: str) -> float:
    radius = Element(symbol).van_der_waals_radius
    return 4 / 3 * math.pi * float(_USUAL_RADIUS if radius is None else radius) ** 3


def compositional_invalid_reason(composition: Composition, table: OxidationTable) -> str | None:
    """Returns why a composition is invalid by the SMACT rule, or None if it is valid.

    Elements and alloys of metals are valid; other compositions must have balanced charges (see `oxidation`).
    """
    counts = reduced_counts(composition)
    if len(counts) == 1 or table.metals.issuperset(counts) or table.is_balanced(counts):
        return None
    return "no oxidation states balance"


def reduced_counts(composition: Composition) -> Mapping[str, int]:
    """Returns the number of atoms of each element, in the order of atomic numbers, divided by the greatest common
    divisor.
    """
    atoms: dict[int, int] = {}
    for specie, amount in composition.items():
        atoms[specie.Z] = atoms.get(specie.Z, 0) + round(amount)
    divisor = math.gcd(*atoms.values())
    return {Element.from_Z(z).symbol: atoms[z] // divisor for z in sorted(atoms)}
