"""Checks a cell before any compiled code sees it: spglib crashes the process on a length that is not a number."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

MAX_LENGTH = 1e6  # Å; beyond it products of cell vectors lose all precision, and no crystal is meant
MIN_THICKNESS = 0.01  # Å between opposite faces; pymatgen's limit, below which its neighbour search may not end


def cell_fault(lengths: Sequence[float] | np.ndarray, angles: Sequence[float] | np.ndarray) -> str | None:
    """Says why cell parameters form no cell, or returns None if they do.

    Args:
        lengths: a, b, c in Å, or those that are known.
        angles: α, β, γ in degrees, or those that are known.
    """
    for length in lengths:
        if not math.isfinite(length) or not 0 < length < MAX_LENGTH:
            return f"the lattice forms no cell: cell length {length:g}"
    for angle in angles:
        if not math.isfinite(angle) or not 0 < angle < 180:
            return f"the lattice forms no cell: cell angle {angle:g}"
    if len(lengths) < 3 or len(angles) < 3:
        return None  # the others follow from the crystal system
    cosines = np.cos(np.radians(angles))
    squared = 1 - float(cosines @ cosines) + 2 * float(np.prod(cosines))  # of volume / (a b c)
    if squared <= 0:
        return "the lattice forms no cell: no three vectors have angles of " + ", ".join(f"{a:g}" for a in angles)
    relative = math.sqrt(squared) / np.sin(np.radians(angles))  # heights over a, b, c, relative to these
    if min(relative * lengths) < MIN_THICKNESS:
        return f"the lattice forms no cell: it is thinner than {MIN_THICKNESS:g} Å"
    return None


def matrix_fault(matrix: np.ndarray) -> str | None:
    """Says why three vectors form no cell, or returns None if they do.

    Args:
        matrix: the lattice vectors in Å, one a row, [3, 3].
    """
    if not np.isfinite(matrix).all():
        return "the lattice forms no cell: a vector is not finite"
    lengths = np.linalg.norm(matrix, axis=1)
    if not (lengths > 0).all() or lengths.max() >= MAX_LENGTH:
        return f"the lattice forms no cell: cell lengths {', '.join(f'{length:g}' for length in lengths)}"
    areas = [np.linalg.norm(np.cross(matrix[i - 1], matrix[i - 2])) for i in range(3)]
    volume = abs(float(np.linalg.det(matrix)))
    if volume < MIN_THICKNESS * max(areas) or min(areas) == 0:
        return "the lattice forms no cell: its vectors lie in a plane, or nearly"
    return None
