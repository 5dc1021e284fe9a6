"""Measures coverage of real crystals by generated ones, and distances between both sets.

Coverage (CDVAE, Xie et al., ICLR 2022): a real crystal is covered if some generated structure is within a cut-off of it
by structure fingerprint, and some generated composition, not necessarily of the same crystal, by composition
fingerprint. Recall is the share of real crystals that are covered. Precision is the share of generated crystals that
are covered by real ones. AMSD and AMCD are the mean distances to the nearest structure and to the nearest composition.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist

from crystal_jax.evaluate.cutoffs import CUTOFFS, Cutoffs
from crystal_jax.evaluate.fingerprints.fingerprints import Fingerprints
from crystal_jax.evaluate.metrics.rate import Rate

_ROWS_AT_ONCE = 1024  # rows of a distance matrix computed together; with 10,000 columns they take 80 MB


@dataclasses.dataclass(frozen=True)
class Nearest:
    """Nearest neighbours in another set for each of n crystals.

    Attributes:
        structure: distance to the nearest structure, (n,); infinite if the other set is empty.
        composition: distance to the nearest composition, (n,); infinite if the other set is empty.
        by_structure: index of the nearest structure, (n,); -1 if the other set is empty.
        by_composition: index of the nearest composition, (n,); -1 if the other set is empty.
        by_both: index of the crystal with the smallest sum of both distances in units of `CUTOFFS["mp20"]`, (n,); -1 if
            the other set is empty.
    """

    structure: np.ndarray
    composition: np.ndarray
    by_structure: np.ndarray
    by_composition: np.ndarray
    by_both: np.ndarray

    def within(self, cutoffs: Cutoffs) -> np.ndarray:
        """Whether both distances are within the cut-offs, (n,)."""
        return (self.structure <= cutoffs.structure) & (self.composition <= cutoffs.composition)

    def mean(self, kind: str) -> float | None:
        """Returns the mean distance by "structure" or "composition"; None if there is none."""
        distances = getattr(self, kind)
        return float(distances.mean()) if len(distances) and np.isfinite(distances).all() else None


def nearest(of: Fingerprints, among: Fingerprints) -> Nearest:
    """Finds the nearest crystals by Euclidean distance, exactly."""
    count = len(of)
    if not len(among) or not count:
        nothing = np.full(count, -1)
        return Nearest(np.full(count, np.inf), np.full(count, np.inf), nothing, nothing, nothing)
    unit = CUTOFFS["mp20"]
    blocks = zip(
        _distance_blocks(of.structure, among.structure),
        _distance_blocks(of.composition, among.composition),
        strict=True,
    )
    columns = []
    for structure, composition in blocks:
        both = structure / unit.structure + composition / unit.composition
        places = [distances.argmin(axis=1) for distances in (structure, composition, both)]
        columns.append((structure.min(axis=1), composition.min(axis=1), *places))
    return Nearest(*(np.concatenate(column) for column in zip(*columns, strict=True)))


def coverage(
    generated: Fingerprints, real: Fingerprints, cutoffs: Cutoffs, *, num_generated: int
) -> dict[str, dict[str, Any]]:
    """Returns `coverage_recall` and `coverage_precision` as rates, `amsd_*` and `amcd_*` as mean distances.

    Args:
        generated: fingerprints of the scored samples.
        real: fingerprints of the reference.
        cutoffs: see `CUTOFFS`.
        num_generated: the denominator of precision; samples without a fingerprint count as not covered.
    """
    precision, recall = nearest(generated, real), nearest(real, generated)
    distances = {}
    for direction, found in (("recall", recall), ("precision", precision)):
        for name, kind in (("amsd", "structure"), ("amcd", "composition")):
            value = found.mean(kind)
            distances[f"{name}_{direction}"] = {"value": value, "unit": "fingerprint", "crystals": len(found.structure)}
    return {
        "coverage_recall": Rate.of(recall.within(cutoffs)).as_dict(),
        "coverage_precision": Rate(int(precision.within(cutoffs).sum()), num_generated).as_dict(),
        **distances,
    }


def diversity(rows: np.ndarray) -> float | None:
    """Returns the mean Euclidean distance of all pairs of distinct rows; None for fewer than two rows."""
    count = len(rows)
    if count < 2:
        return None
    total = sum(float(block.sum()) for block in _distance_blocks(rows, rows))
    return total / (count * (count - 1))


def _distance_blocks(rows: np.ndarray, others: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the distance matrix in blocks of rows."""
    for begin in range(0, len(rows), _ROWS_AT_ONCE):
        yield cdist(rows[begin : begin + _ROWS_AT_ONCE], others)
