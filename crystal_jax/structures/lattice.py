"""Checks cells before compiled code reads them: spglib crashes the process on a length that is NaN."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

MAX_LENGTH = 1e6  # Å; above it, products of cell vectors lose all precision, and no crystal has such a cell
MIN_THICKNESS = 0.01  # Å between opposite faces; pymatgen's limit, below which its neighbour search may not terminate


def cell_fault(lengths: Sequence[float] | np.ndarray, angles: Sequence[float] | np.ndarray) -> str | None:
    """Returns why cell parameters form no cell, or None if they do.

    Args:
        lengths: a, b, c in Å, or the known ones.
        angles: α, β, γ in degrees, or the known ones.
    """
    for length in lengths:
        if not math.isfinite(length) or not 0 < length < MAX_LENGTH:
            return f"the lattice forms no cell: cell length {length:g}"
    for angle in angles:
        if not math.isfinite(angle) or not 0 < angle < 180:
            return f"the lattice forms no cell: cell angle {angle:g}"
    if len(lengths) < 3 or len(angles) < 3:
        return None  # the other parameters follow from the crystal system
    cosines = np.cos(np.radians(angles))
    squared = 1 - float(cosines @ cosines) + 2 * float(np.prod(cosines))  # square of volume / (a b c)
    if squared <= 0:
        return "the lattice forms no cell: no three vectors have angles of " + ", ".join(f"{a:g}" for a in angles)
    relative = math.sqrt(squared) / np.sin(np.radians(angles))  # heights above the faces, relative to a, b, c
    if min(relative * lengths) < MIN_THICKNESS:
        return f"the lattice forms no cell: it is thinner than {MIN_THICKNESS:g} Å"
    return None


def matrix_fault(matrix: np.ndarray) -> str | None:
    """Returns why three vectors form no cell, or None if they do.

    Args:
        matrix: the lattice vectors in Å as rows, [3, 3].
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
