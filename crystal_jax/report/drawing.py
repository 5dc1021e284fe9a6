"""Prepares crystals for the page's viewer: atoms, bonds, coordination polyhedra."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from pymatgen.core import Element, Structure
from scipy.spatial import ConvexHull, QhullError

from crystal_jax.report import elements

FACE_TOLERANCE = 0.02  # fractional; atoms this close to a face are also drawn on the opposite face
BOND_SLACK = 0.25  # Å; two atoms are drawn as bonded up to the sum of their atomic radii plus this
MAX_ATOMS = 400  # larger cells would make the page heavy and the drawing unreadable
MIN_NEIGHBOURS = 4  # of an atom with a polyhedron
MAX_NEIGHBOURS = 12
_COPLANAR = 1e-2  # 1 - cosine between the normals of triangles that form one face


def drawing(structure: Structure) -> dict[str, Any] | None:
    """Returns the viewer's data, in Å around the cell's centre; None for more than `MAX_ATOMS` atoms.

    Returns:
        `cell`: the lattice vectors, (3, 3); `atoms`: [x, y, z, symbol index], with atoms on faces repeated on the
            opposite faces; `bonds`: pairs of atom indices; `elements`: [symbol, colour, radius in Å]; `polyhedra`: for
            each, its symbol index, its corners, and its triangles and edges as indices of corners.
    """
    if len(structure) > MAX_ATOMS:
        return None
    symbols = sorted(structure.symbol_set)
    centre = structure.lattice.matrix.sum(axis=0) / 2
    around = _polyhedra(structure)
    atoms, kinds, polyhedra = [], [], []
    for site, polyhedron in zip(structure, around, strict=True):
        kind = symbols.index(site.specie.symbol)
        for frac in _on_faces(site.frac_coords % 1.0):
            position = structure.lattice.get_cartesian_coords(frac) - centre
            atoms.append(position)
            kinds.append(kind)
            if polyhedron is not None:
                corners, triangles, edges = polyhedron
                polyhedra.append([kind, np.round(corners + position, 2).tolist(), triangles, edges])
    return {
        "cell": np.round(structure.lattice.matrix, 3).tolist(),
        "atoms": [[*np.round(xyz, 3).tolist(), kind] for xyz, kind in zip(atoms, kinds, strict=True)],
        "bonds": _bonds(np.array(atoms), [symbols[kind] for kind in kinds]),
        "elements": [[symbol, elements.color(symbol), elements.radius(symbol)] for symbol in symbols],
        "polyhedra": polyhedra,
    }


def _on_faces(frac: np.ndarray) -> list[np.ndarray]:
    """Returns the site itself and its images on the cell's other faces, edges and corners."""
    choices = [[x, x + 1] if x < FACE_TOLERANCE else [x, x - 1] if x > 1 - FACE_TOLERANCE else [x] for x in frac]
    return [np.array(image) for image in itertools.product(*choices)]


def _bonds(atoms: np.ndarray, symbols: list[str]) -> list[list[int]]:
    """Returns pairs of neighbours, except pairs of metals, whose bonds would hide everything else."""
    radii = np.array([elements.radius(symbol) for symbol in symbols])
    metal = np.array([Element(symbol).is_metal for symbol in symbols])
    distances = np.linalg.norm(atoms[:, None] - atoms[None], axis=-1)
    close = distances < radii[:, None] + radii[None] + BOND_SLACK
    return np.argwhere(np.triu(close & ~(metal[:, None] & metal[None]), k=1)).tolist()


Polyhedron = tuple[Float[np.ndarray, "n 3"], list[list[int]], list[list[int]]]


def _polyhedra(structure: Structure) -> list[Polyhedron | None]:
    """Returns, for each site, the polyhedron of its bonded neighbours, relative to it.

    Only atoms that are less electronegative than all of their bonded neighbours have one: those of a spinel's metals,
    not those of its oxygens, and none in an alloy.
    """
    radii = [elements.radius(site.specie.symbol) for site in structure]
    reach = 2 * max(radii) + BOND_SLACK
    vectors: list[list[Float[np.ndarray, 3]]] = [[] for _ in structure]
    is_centre = [True] * len(structure)
    centers, others, offsets, distances = structure.get_neighbor_list(reach)
    for i, j, offset, distance in zip(centers, others, offsets, distances, strict=True):
        if distance >= radii[i] + radii[j] + BOND_SLACK:
            continue
        here, there = structure[int(i)].specie, structure[int(j)].specie
        if here.is_metal and there.is_metal:
            continue
        is_centre[i] &= bool(here.X < there.X)
        vectors[i].append(structure[int(j)].coords + offset @ structure.lattice.matrix - structure[int(i)].coords)
    return [_hull(found) if center else None for center, found in zip(is_centre, vectors, strict=True)]


def _hull(corners: Sequence[Float[np.ndarray, 3]]) -> Polyhedron | None:
    if not MIN_NEIGHBOURS <= len(corners) <= MAX_NEIGHBOURS:
        return None
    points = np.array(corners)
    try:
        hull = ConvexHull(points)
    except QhullError:  # the neighbours lie in a plane
        return None
    return points, hull.simplices.tolist(), list(_edges(hull))


def _edges(hull: ConvexHull) -> Iterator[list[int]]:
    """Yields the edges of a polyhedron; those between triangles of one face are none."""
    for one, neighbours in enumerate(hull.neighbors):
        for other in neighbours:
            if one < other and hull.equations[one, :3] @ hull.equations[other, :3] < 1 - _COPLANAR:
                yield sorted(map(int, set(hull.simplices[one]) & set(hull.simplices[other])))
