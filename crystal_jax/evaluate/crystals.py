"""Parses the crystals of an evaluation on all cores."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from pymatgen.core import Structure
from tqdm import tqdm

from crystal_jax.storage.worker_pool import map_in_order
from crystal_jax.structures import Entry, Sample, parse
from crystal_jax.structures.parse import died


def parse_all(
    entries: Sequence[Entry], *, what: str = "reading", workers: int | None = None, progress: bool = False
) -> list[Sample]:
    """Parses every entry on all cores; entries that fail stay in the list."""
    samples = map_in_order(parse, entries, workers=workers, lost=died)
    return list(tqdm(samples, what, len(entries), unit="crystal", disable=not progress))


def properties(samples: Sequence[Sample]) -> pd.DataFrame:
    """Returns density (g/cm^3), number of elements and number of atoms of every sample with a structure."""
    rows = [properties_of(sample.structure) for sample in samples if sample.structure]
    return pd.DataFrame(rows, columns=["density", "num_elements", "num_atoms"])


def properties_of(structure: Structure) -> dict[str, float | int]:
    """Returns density (g/cm^3), number of elements and number of atoms of a crystal."""
    return {
        "density": float(structure.density),
        "num_elements": len(structure.composition.element_composition),
        "num_atoms": len(structure),
    }
