"""Do generated crystals cover the real ones, and are they near them? And how far are they from each other?

Coverage (CDVAE, Xie et al., ICLR 2022): a real crystal is covered if some generated structure lies within a cut-off of
it by the structure fingerprint, and some generated composition, not necessarily of the same crystal, by the composition
fingerprint. Recall is the share of real crystals that are covered; precision the share of generated ones that are
covered by real ones. AMSD and AMCD are the mean distances to the nearest structure and to the nearest composition.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist

from crystal_jax.evaluate.fingerprints import Fingerprints
from crystal_jax.evaluate.rate import Rate


@dataclasses.dataclass(frozen=True)
class Cutoffs:
    """Largest distances at which a crystal is covered; in the units of the fingerprints."""

    structure: float
    composition: float


# CDVAE, `compute_metrics.py`.
CUTOFFS = {
    "mp20": Cutoffs(0.4, 10.0),
    "perov5": Cutoffs(0.2, 4.0),
    "carbon24": Cutoffs(0.2, 4.0),
}
# crystal-text-llm, `basic_eval.py`: further than this from every training crystal is new.
NOVELTY = Cutoffs(0.1, 2.0)

_ROWS_AT_ONCE = 1024  # of a distance matrix: 10,000 columns of them take 80 MB


@dataclasses.dataclass(frozen=True)
class Nearest:
    """For each of n crystals the distances to the nearest of another set by structure and by composition, and which
    ones are nearest: by structure, by composition, and by the sum of both distances in units of `CUTOFFS["mp20"]`.
    Infinite, and -1, where the other set is empty.
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
        """The mean distance by "structure" or "composition"; None if there is none."""
        distances = getattr(self, kind)
        return float(distances.mean()) if len(distances) and np.isfinite(distances).all() else None


def nearest(of: Fingerprints, among: Fingerprints) -> Nearest:
    """Looks for the nearest crystals by Euclidean distance, exactly."""
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
    """`coverage_recall` and `coverage_precision` as rates, `amsd_*` and `amcd_*` as mean distances.

    Args:
        generated: of the samples that count.
        real: of the reference.
        cutoffs: see `CUTOFFS`.
        num_generated: the denominator of precision, which counts samples without a fingerprint as not covered.
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
    """The mean Euclidean distance of all pairs of distinct rows; None for fewer than two."""
    count = len(rows)
    if count < 2:
        return None
    total = sum(float(block.sum()) for block in _distance_blocks(rows, rows))
    return total / (count * (count - 1))


def _distance_blocks(rows: np.ndarray, others: np.ndarray) -> Iterator[np.ndarray]:
    """Blocks of rows of the distance matrix."""
    for begin in range(0, len(rows), _ROWS_AT_ONCE):
        yield cdist(rows[begin : begin + _ROWS_AT_ONCE], others)
