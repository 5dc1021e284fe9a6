"""Computes the paper's structure fingerprint: coordination numbers and order parameters, averaged over sites.

CrystalNN (Pan et al., Inorg. Chem. 60, 1590, 2021) weights the faces of an atom's Voronoi cell and turns the weights
into a probability of each coordination number. The fingerprint "ops" lists these probabilities and, multiplied by them,
the order parameters of the most likely neighbours. The numbers are those of matminer's `CrystalNNFingerprint` with the
preset "ops" (a test compares them); the only difference is that the faces of a cell are measured together.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import numpy as np
from pymatgen.core import Element, Structure
from pymatgen.core.molecule_structure_comparator import CovalentRadius
from scipy.spatial import QhullError, Voronoi

from crystal_jax.evaluate.fingerprints.order_parameters import MOTIFS, order_parameters
from crystal_jax.suppress_warnings import quiet

MAX_COORDINATION = 24  # the fingerprint has no entries for higher coordination numbers
LENGTH = MAX_COORDINATION + sum(map(len, MOTIFS.values()))  # 61

# CrystalNN's defaults.
SEARCH_RADIUS = 7.0  # Å, radius of the tessellated atoms; doubled until the Voronoi cell is closed
DISTANCE_CUTOFFS = (0.5, 1.0)  # Å beyond the sum of radii where a bond's weight starts to fall, and where it is 0
ELECTRONEGATIVITY_WEIGHT = 3.0
MAX_ELECTRONEGATIVITY_DIFFERENCE = 3.3  # Pauling's scale

MAX_POINTS = 20_000  # atoms within the radius; a crystal with more is unphysical and would take minutes


class NoFingerprint(Exception):  # noqa: N818 - a property of the crystal, not an error
    """States why a crystal has no fingerprint."""


@quiet()
def structure_fingerprint(structure: Structure) -> np.ndarray:
    """Returns the mean over all sites of the fingerprint "ops", (61,): for each coordination number from 1 to 24 its
    probability, followed by its order parameters times that probability.

    Oxidation states are ignored, as in the evaluators of CDVAE and of the paper.

    Raises:
        NoFingerprint: a Voronoi cell cannot be built.
    """
    try:
        sites = [_site_fingerprint(structure, index) for index in range(len(structure))]
        mean: np.ndarray = np.mean(sites, axis=0)
    except (QhullError, ValueError, ArithmeticError) as error:
        raise NoFingerprint(str(error).strip().split("\n")[0] or type(error).__name__) from error
    return mean


def _site_fingerprint(structure: Structure, index: int) -> np.ndarray:
    """Returns the fingerprint of one site, (61,); see `structure_fingerprint`."""
    vectors, weights = bond_weights(structure, index)
    parts = {}
    for count, probability in coordination_probabilities(weights).items():
        parts[count] = probability, order_parameters(vectors[:count])
    row: list[float] = []
    for count in range(1, MAX_COORDINATION + 1):
        probability, values = parts.get(count, (0.0, [0.0] * len(MOTIFS.get(count, ()))))
        row += [probability, *(probability * value for value in values)]
    return np.array(row)


def bond_weights(structure: Structure, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the possibly bonded neighbours of a site, by decreasing weight.

    Returns:
        Vectors to the neighbours in Å, (n, 3), and CrystalNN's weights, (n,), in (0, 1], rounded to 3 decimals.

    Raises:
        NoFingerprint: too many atoms surround the site.
        QhullError: the Voronoi cell is not closed.
    """
    faces, vectors, kinds = _voronoi_cell(structure, index)
    solid_angle, area = faces
    centre = _element_of(structure, index)
    weight = solid_angle / solid_angle.max() * (solid_angle / area)  # open structures: small distant faces count less
    weight = weight * np.array([_chemical_weight(centre, kind) for kind in kinds])
    order = np.argsort(-weight, kind="stable")
    order = order[solid_angle[order] > 0]
    vectors, weight, kinds = vectors[order], weight[order], [kinds[i] for i in order]
    weight = weight / weight[0]
    radii = np.array([_radius(centre) + _radius(kind) for kind in kinds])
    distance = np.linalg.norm(vectors, axis=1)
    begin, end = radii + DISTANCE_CUTOFFS[0], radii + DISTANCE_CUTOFFS[1]
    fading = 0.5 * (np.cos((distance - begin) / (end - begin) * np.pi) + 1)
    weight = weight * np.where(distance <= begin, 1.0, np.where(distance < end, fading, 0.0))
    order = np.argsort(-weight, kind="stable")
    vectors, weight = vectors[order], np.array([round(float(w), 3) for w in weight[order]])
    return vectors[weight > 0], weight[weight > 0]


def coordination_probabilities(weights: np.ndarray) -> dict[int, float]:
    """Converts bond weights, in decreasing order, to the probability of each coordination number.

    The probabilities are shares of the area of a quarter circle. The share of n, the number of neighbours with weights
    of at least w, is the area between w and the next smaller weight.
    """
    levels = [*dict.fromkeys(weights.tolist()), 0.0]
    areas = [_quarter_circle(level) for level in levels]
    return {
        int((weights >= level).sum()): (areas[i] - areas[i + 1]) / (math.pi / 4) for i, level in enumerate(levels[:-1])
    }


def _quarter_circle(x: float) -> float:
    """Returns the area under the unit circle between 0 and x."""
    if x >= 1:
        return math.pi / 4
    height = math.sqrt(1 - x * x)
    return 0.5 * (x * height + math.atan(x / height))


def _voronoi_cell(structure: Structure, index: int) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray, list[Element]]:
    """Returns solid angles (sr) and areas (Å^2) of a site's faces, vectors to the sites behind them, and their
    elements.
    """
    lattice = structure.lattice
    centre = structure[index].coords
    corners = lattice.get_cartesian_coords([[1, 1, 1], [-1, 1, 1], [1, -1, 1], [1, 1, -1]])
    largest = np.linalg.norm(corners, axis=1).max() + 0.01
    radius = SEARCH_RADIUS
    while True:
        inside: Any = lattice.get_points_in_sphere(structure.frac_coords, centre, radius, zip_results=False)
        frac, distances, indices, _ = inside
        if len(indices) > MAX_POINTS:
            raise NoFingerprint(f"more than {MAX_POINTS} atoms within {radius:g} Å")
        order = np.argsort(distances, kind="stable")
        points = lattice.get_cartesian_coords(frac[order])
        try:
            others, solid_angle, area = _faces(points)
            break
        except QhullError:
            if radius >= largest:
                raise
            radius = min(2 * radius, largest + 0.001)
    kinds = [_element_of(structure, int(i)) for i in indices[order][others]]
    return (solid_angle, area), points[others] - centre, kinds


def _faces(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the points behind the faces of the first point's Voronoi cell, and the faces' solid angles and areas.

    Raises:
        QhullError: the cell is open, or does not exist.
    """
    voronoi = Voronoi(points)
    mine = np.flatnonzero((voronoi.ridge_points == 0).any(axis=1))
    others = voronoi.ridge_points[mine].sum(axis=1)  # the other point of each pair with point 0
    rings = [voronoi.ridge_vertices[i] for i in mine]
    if not rings or any(-1 in ring for ring in rings):
        raise QhullError("the Voronoi cell is open")
    # Faces are polygons with ordered corners; each is split into a fan of triangles from its first corner.
    fan = [(face, ring[0], a, b) for face, ring in enumerate(rings) for a, b in itertools.pairwise(ring[1:])]
    face, first, second, third = np.array(fan).T
    a, b, c = (voronoi.vertices[corner] - points[0] for corner in (first, second, third))
    triple = np.abs(np.einsum("tx,tx->t", a, np.cross(b, c)))
    la, lb, lc = (np.linalg.norm(x, axis=1) for x in (a, b, c))
    dot = functools.partial(np.einsum, "tx,tx->t")
    angle = np.arctan2(triple, la * lb * lc + lc * dot(a, b) + lb * dot(a, c) + la * dot(b, c))
    solid_angle = np.bincount(face, 2 * angle, len(rings))
    volume = np.bincount(face, triple / 6, len(rings))
    return others, solid_angle, 3 * volume / (np.linalg.norm(points[others] - points[0], axis=1) / 2)


def _element_of(structure: Structure, index: int) -> Element:
    return Element.from_Z(structure[index].specie.Z)


@functools.cache
def _chemical_weight(one: Element, other: Element) -> float:
    """Returns a factor that grows with the difference in electronegativity; 1 if it is unknown."""
    with np.errstate(invalid="ignore"):
        difference = abs(_electronegativity(one) - _electronegativity(other))
    if math.isnan(difference):
        return 1.0
    return 1 + ELECTRONEGATIVITY_WEIGHT * math.sqrt(difference / MAX_ELECTRONEGATIVITY_DIFFERENCE)


@quiet()
def _electronegativity(element: Element) -> float:
    return float(element.X)


@functools.cache
def _radius(element: Element) -> float:
    """Returns the covalent radius in Å, or the atomic radius if the covalent one is unknown."""
    return float(CovalentRadius.radius.get(element.symbol) or element.atomic_radius or math.nan)
