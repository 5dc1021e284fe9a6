"""Describes each sample, and checks it: structure, composition, distances."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import pandas as pd
from tqdm import tqdm

from crystal_jax.evaluate.chemistry import symmetry
from crystal_jax.evaluate.chemistry.oxidation import OxidationTable
from crystal_jax.evaluate.chemistry.validity import (
    compositional_invalid_reason,
    implausible_reason,
    interatomic_distances,
    reduced_counts,
    structural_invalid_reason,
)
from crystal_jax.evaluate.crystals import properties_of
from crystal_jax.storage.worker_pool import map_in_order
from crystal_jax.structures import Sample
from crystal_jax.suppress_warnings import quiet

COLUMNS = (
    "name",
    "formula",
    "reduced_formula",
    "num_atoms",
    "num_elements",
    "density",
    "volume",
    "spacegroup",
    "structurally_valid",
    "compositionally_valid",
    "plausible",
    "implausible_reason",
    "min_distance",
    "oxidation_states",
    "remark",
    "passes_checks",
    "checks_failure",
)


def check_samples(
    samples: Sequence[Sample], table: OxidationTable, *, workers: int | None = None, progress: bool = False
) -> pd.DataFrame:
    """Returns `COLUMNS`, one row per sample in the samples' order."""
    check, lost = functools.partial(_row, table=table), functools.partial(_row_of_dead, table=table)
    rows = map_in_order(check, samples, workers=workers, lost=lost)
    rows = tqdm(rows, "validity", len(samples), unit="crystal", disable=not progress)
    return pd.DataFrame(list(rows), columns=list(COLUMNS))


@quiet()
def _row(sample: Sample, table: OxidationTable) -> dict[str, Any]:
    faults = [sample.failure, sample.failure]
    facts: dict[str, Any] = {}
    if sample.composition is not None:
        faults[1] = compositional_invalid_reason(sample.composition, table)
        facts |= {"formula": sample.composition.formula, "reduced_formula": sample.composition.reduced_formula}
        if charges := table.balanced_states(reduced_counts(sample.composition)):
            order = [element.symbol for element in sorted(sample.composition.elements)]  # by electronegativity
            facts["oxidation_states"] = " ".join(f"{symbol}{charges[symbol]:+d}" for symbol in order)
    if sample.structure is not None:
        faults[0] = structural_invalid_reason(sample.structure)
        facts |= properties_of(sample.structure) | {"volume": sample.structure.volume}
    valid = not any(faults)
    if valid and sample.structure is not None:
        facts["min_distance"] = float(interatomic_distances(sample.structure).min())
        facts["implausible_reason"] = implausible_reason(sample.structure)
    return facts | {
        "plausible": valid and facts.get("implausible_reason") is None,
        "name": sample.name,
        "spacegroup": symmetry.spacegroup(sample.structure) if valid and sample.structure else None,
        "structurally_valid": not faults[0],
        "compositionally_valid": not faults[1],
        "passes_checks": valid,
        "checks_failure": "; ".join(dict.fromkeys(fault for fault in faults if fault)) or None,
        "remark": sample.remark,
    }


def _row_of_dead(sample: Sample, table: OxidationTable) -> dict[str, Any]:
    """Returns the row of a sample whose process died."""
    return _row(dataclasses.replace(sample, structure=None, failure="the process that judged it died"), table)
