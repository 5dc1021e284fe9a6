"""Builds the table of `structures.csv`: one row per sample with its properties, checks, and reasons for failures."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import pandas as pd
from pymatgen.core import Structure
from tqdm import tqdm

from crystal_jax.evaluate import novelty, symmetry
from crystal_jax.evaluate.oxidation import OxidationTable
from crystal_jax.evaluate.validity import (
    compositional_invalid_reason,
    implausible_reason,
    interatomic_distances,
    reduced_counts,
    structural_invalid_reason,
)
from crystal_jax.storage.worker_pool import map_in_order
from crystal_jax.structures import Entry, Sample, parse
from crystal_jax.structures.parse import died
from crystal_jax.suppress_warnings import quiet

COLUMNS = {
    "name": "str",
    "formula": "str",
    "reduced_formula": "str",
    "num_atoms": "Int64",
    "num_elements": "Int64",
    "density": "float64",  # g/cm^3
    "volume": "float64",  # Å^3, of the cell
    "spacegroup": "Int64",  # number; only for valid samples
    "structurally_valid": "bool",
    "compositionally_valid": "bool",
    "valid": "bool",
    "plausible": "bool",  # valid, and within the chemical limits of `validity.implausible_reason`
    "implausible_reason": "str",  # of valid samples
    "min_distance": "float64",  # Å, between any two atoms, periodic images included
    "oxidation_states": "str",  # the most common balanced choice, such as "Li+1 Fe+2 P+5 O-2"
    "unique": "boolean",  # for valid samples: no earlier row is the same crystal
    "unique_loose": "boolean",  # the same at CDVAE's tolerances
    "novel": "boolean",  # for valid samples, given a training set: the crystal is not in it
    "novel_loose": "boolean",  # the same at CDVAE's tolerances
    "matched_train_id": "str",  # name of the same crystal in the training set
    "covered": "boolean",  # for samples with a structure: the reference has crystals near it by fingerprint
    "structure_distance": "float64",  # fingerprint distance to the nearest reference crystal
    "composition_distance": "float64",
    "novel_by_fingerprint": "boolean",  # for valid samples, given the training set's fingerprints: far from all of them
    "nearest_known": "str",  # nearest crystal by fingerprint, of the training set or else of the reference
    "known_formula": "boolean",  # for valid samples, given the list: the Materials Project has this formula
    # For samples with this condition:
    "formula_match": "boolean",
    "spacegroup_match": "boolean",
    "e_above_hull_match": "boolean",
    "chemical_system_match": "boolean",
    # From a file of scores:
    "perplexity": "float64",
    "ipt": "float64",  # increase in perplexity under translation
    # For valid samples, given an energy model:
    "relaxation_status": "str",  # "converged", "steps" (limit reached; the energy counts), or the type of failure
    "relaxation_steps": "Int64",
    "energy_per_atom": "float64",  # eV, relaxed, with the MP2020 corrections
    "formation_energy_per_atom": "float64",  # eV, relaxed
    "e_above_hull": "float64",  # eV/atom, relaxed
    "known_in_system": "Int64",  # number of the hull's materials with exactly these elements
    "stable_in_system": "Int64",  # stable compounds of these elements in the Materials Project
    "stable_missing": "Int64",  # how many of these compounds the hull lacks
    "lower_bound": "boolean",  # the hull is incomplete: the true energy above the hull is at least this
    "decomposes_to": "str",  # the hull's materials at this composition, with shares
    "relaxed_spacegroup": "Int64",
    "relaxed_density": "float64",  # g/cm^3
    "relaxed_volume": "float64",  # Å^3, of the cell
    "relaxed_plausible": "boolean",  # `plausible` for the relaxed crystal
    "relaxation_rmsd": "float64",  # Å, root mean square move of the atoms, without the change of the cell
    # From DFT, written by 'crystal-jax dft collect':
    "dft_status": "str",  # how the DFT run ended
    "e_above_hull_dft": "float64",  # eV/atom
    "failure_reason": "str",  # reasons, joined by "; "
    "remark": "str",  # hydrogens that are stated in the formula and missing in the sites
}


def parse_all(
    entries: Sequence[Entry], *, what: str = "reading", workers: int | None = None, progress: bool = False
) -> list[Sample]:
    """Parses every entry on all cores; entries that fail stay in the list."""
    samples = map_in_order(parse, entries, workers=workers, lost=died)
    return list(tqdm(samples, what, len(entries), unit="crystal", disable=not progress))


def tabulate(
    samples: Sequence[Sample], table: OxidationTable, *, workers: int | None = None, progress: bool = False
) -> pd.DataFrame:
    """Fills in all columns but uniqueness and novelty, one row per sample in the samples' order (see `COLUMNS`)."""
    judge, lost = functools.partial(_row, table=table), functools.partial(_row_of_dead, table=table)
    rows = map_in_order(judge, samples, workers=workers, lost=lost)
    rows = tqdm(rows, "validity", len(samples), unit="crystal", disable=not progress)
    return pd.DataFrame(list(rows), columns=list(COLUMNS)).astype(COLUMNS)


@quiet()
def add_uniqueness(
    rows: pd.DataFrame,
    samples: Sequence[Sample],
    train: Sequence[Entry] | None,
    *,
    workers: int | None = None,
    progress: bool = False,
) -> None:
    """Fills in `unique` and, if a training set is given, `novel` and `matched_train_id`, for the valid rows."""
    valid = rows.index[rows["valid"]]
    whole = [structure for i in valid if (structure := samples[i].structure) is not None]
    reduced = map_in_order(novelty.reduce_cell, whole, workers=workers, lost=lambda _: None)
    cells = list(tqdm(reduced, "primitive cells", len(valid), unit="crystal", disable=not progress))
    for column, tolerances in (("unique", novelty.MATCHER), ("unique_loose", novelty.LOOSE_MATCHER)):
        rows.loc[valid, column] = novelty.is_first_occurrence(cells, tolerances=tolerances, progress=progress)
    if train is not None:
        known = novelty.group_by_formula(train, cells, progress=progress)
        for column, tolerances in (("novel", novelty.MATCHER), ("novel_loose", novelty.LOOSE_MATCHER)):
            names = novelty.find_matches(known, cells, tolerances=tolerances, progress=progress)
            rows.loc[valid, column] = [c is not None and name is None for c, name in zip(cells, names, strict=True)]
            if column == "novel":
                rows.loc[valid, "matched_train_id"] = names
    for i, cell in zip(valid, cells, strict=True):
        if cell is None:
            rows.loc[i, "failure_reason"] = "no primitive cell to compare"


def properties(samples: Sequence[Sample]) -> pd.DataFrame:
    """Returns density (g/cm^3), number of elements and number of atoms of every sample with a structure."""
    rows = [_properties(sample.structure) for sample in samples if sample.structure]
    return pd.DataFrame(rows, columns=["density", "num_elements", "num_atoms"])


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
        facts |= _properties(sample.structure) | {"volume": sample.structure.volume}
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
        "valid": valid,
        "failure_reason": "; ".join(dict.fromkeys(fault for fault in faults if fault)),
        "remark": sample.remark,
    }


def _row_of_dead(sample: Sample, table: OxidationTable) -> dict[str, Any]:
    """Returns the row of a sample whose process died."""
    return _row(dataclasses.replace(sample, structure=None, failure="the process that judged it died"), table)


def _properties(structure: Structure) -> dict[str, float | int]:
    return {
        "density": float(structure.density),
        "num_elements": len(structure.composition.element_composition),
        "num_atoms": len(structure),
    }
