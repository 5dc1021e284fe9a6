"""Compares distributions of generated and real crystals: Wasserstein-1 distances and histograms.

The published figures (CDVAE, table 2; LLaMA-2 paper, table 1) compare *valid* samples with *all* crystals of the test
set. This module does the same with all valid samples; CDVAE draws 1,000 of them.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import wasserstein_distance

MAX_BINS = 40  # bins of a histogram; enough to show its shape, few enough to read


@dataclasses.dataclass(frozen=True)
class Property:
    """Number that every crystal has."""

    column: str
    unit: str
    label: str
    whole: bool  # whether all values are whole numbers


PROPERTIES = (
    Property("density", "g/cm^3", "Density", whole=False),
    Property("num_elements", "elements", "Distinct elements", whole=True),
    Property("num_atoms", "atoms", "Atoms in the cell", whole=True),
)


def wasserstein(samples: pd.Series, reference: pd.Series, unit: str) -> dict[str, Any]:
    """Returns the Wasserstein-1 distance of two sets of numbers, in `unit`, with the sizes of both sets.

    The value is None if either set is empty.
    """
    value = float(wasserstein_distance(samples, reference)) if len(samples) and len(reference) else None
    return {"value": value, "unit": unit, "samples": len(samples), "reference": len(reference)}


def histogram(samples: pd.Series, reference: pd.Series, kind: Property) -> dict[str, Any]:
    """Returns counts of both sets in common bins, `edges[i] <= x < edges[i + 1]`, as plain lists.

    The bins span the reference, if there is one, so that a few extreme samples do not squeeze all others into one bin.
    Values beyond the bins are counted in the outermost ones.
    """
    edges = _edges(np.asarray(reference if len(reference) else samples, float), whole=kind.whole)
    inside = (edges[:-1] + edges[1:])[[0, -1]] / 2
    counts = {"samples": samples, "reference": reference}
    return {
        "label": kind.label,
        "unit": kind.unit,
        "edges": edges.tolist(),
        **{name: np.histogram(np.clip(x, *inside), edges)[0].tolist() for name, x in counts.items()},
    }


def _edges(values: np.ndarray, *, whole: bool) -> np.ndarray:
    """Returns the edges of at most `MAX_BINS` equal bins; edges for whole numbers lie half-way between them."""
    if not values.size:
        return np.array([0.0, 1.0])
    if whole:
        width = math.ceil((values.max() - values.min() + 1) / MAX_BINS)
        return np.arange(values.min() - 0.5, values.max() + width, width)
    return np.linspace(0.0, values.max() or 1.0, MAX_BINS + 1)
