"""One row for each sample: what it is, which checks it passes, and why not."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import pandas as pd
from pymatgen.core import Structure
from tqdm import tqdm

from crystal_jax.evaluate import novelty, symmetry
from crystal_jax.evaluate.oxidation import OxidationTable
from crystal_jax.evaluate.validity import compositional_fault, structural_fault
from crystal_jax.parallel import map_in_order
from crystal_jax.quiet import quiet
from crystal_jax.structures import Entry, Sample, parse

COLUMNS = {
    "name": "str",
    "formula": "str",
    "reduced_formula": "str",
    "num_atoms": "Int64",
    "num_elements": "Int64",
    "density": "float64",  # g/cm^3
    "volume": "float64",  # Å^3, of the cell
    "spacegroup": "Int64",  # number; of valid samples only
    "structurally_valid": "bool",
    "compositionally_valid": "bool",
    "valid": "bool",
    "unique": "boolean",  # of valid samples: no earlier row is the same crystal
    "unique_loose": "boolean",  # the same at CDVAE's tolerances
    "novel": "boolean",  # of valid samples, given a training set: it is not in there
    "novel_loose": "boolean",  # the same at CDVAE's tolerances
    "known_as": "str",  # its name in the training set, if it is in there
    "covered": "boolean",  # of valid samples, by fingerprints: the reference has crystals near it
    "structure_distance": "float64",  # of fingerprints, to the nearest reference crystal
    "composition_distance": "float64",
    "novel_by_fingerprint": "boolean",  # of valid samples, given the training set's fingerprints: far from all
    "nearest_known": "str",  # by fingerprints: of the training set if they are known, else of the reference
    # Of samples that were asked for it:
    "formula_match": "boolean",
    "spacegroup_match": "boolean",
    "e_above_hull_match": "boolean",
    # From a file of scores:
    "perplexity": "float64",
    "ipt": "float64",  # increase in perplexity under translation
    # Of valid samples, given an energy model:
    "relaxation": "str",  # "converged", "steps" (all taken; the energy counts), or how it failed
    "relaxation_steps": "Int64",
    "energy_per_atom": "float64",  # eV, relaxed, with the MP2020 corrections
    "formation_energy_per_atom": "float64",  # eV, relaxed
    "e_above_hull": "float64",  # eV/atom, relaxed
    "known_in_system": "Int64",  # materials of the hull with exactly these elements
    "decomposes_to": "str",  # the hull's materials at this composition
    "relaxed_spacegroup": "Int64",
    "relaxation_rmsd": "float64",  # Å, root mean square of the atoms' moves, without the cell's
    # From density-functional theory, by 'crystal-jax dft collect':
    "dft": "str",  # how the run ended
    "e_above_hull_dft": "float64",  # eV/atom
    "failure": "str",  # reasons, joined by "; "
}


def parse_all(
    entries: Sequence[Entry], *, what: str = "reading", workers: int | None = None, progress: bool = False
) -> list[Sample]:
    """Parses every entry, on as many cores; failures stay in the list."""
    samples = map_in_order(parse, entries, workers=workers)
    return list(tqdm(samples, what, len(entries), unit="crystal", disable=not progress))


def describe(
    samples: Sequence[Sample], table: OxidationTable, *, workers: int | None = None, progress: bool = False
) -> pd.DataFrame:
    """Tabulates all but `unique` and `novel`, one row a sample in the samples' order (see `COLUMNS`)."""
    rows = map_in_order(functools.partial(_row, table=table), samples, workers=workers)
    rows = tqdm(rows, "validity", len(samples), unit="crystal", disable=not progress)
    return pd.DataFrame(list(rows), columns=list(COLUMNS)).astype(COLUMNS)


@quiet()
def compare(
    rows: pd.DataFrame,
    samples: Sequence[Sample],
    train: Sequence[Entry] | None,
    *,
    workers: int | None = None,
    progress: bool = False,
) -> None:
    """Fills in `unique` and, if a training set is given, `novel` and `known_as`, for the valid rows."""
    valid = rows.index[rows["valid"]]
    whole = [structure for i in valid if (structure := samples[i].structure) is not None]
    reduced = map_in_order(novelty.reduce_cell, whole, workers=workers)
    cells = list(tqdm(reduced, "primitive cells", len(valid), unit="crystal", disable=not progress))
    for column, tolerances in (("unique", novelty.MATCHER), ("unique_loose", novelty.LOOSE_MATCHER)):
        rows.loc[valid, column] = novelty.first_of_their_kind(cells, tolerances=tolerances, progress=progress)
    if train is not None:
        known = novelty.of_the_same_formulas(train, cells, progress=progress)
        for column, tolerances in (("novel", novelty.MATCHER), ("novel_loose", novelty.LOOSE_MATCHER)):
            names = novelty.names_in(known, cells, tolerances=tolerances, progress=progress)
            rows.loc[valid, column] = [c is not None and name is None for c, name in zip(cells, names, strict=True)]
            if column == "novel":
                rows.loc[valid, "known_as"] = names
    for i, cell in zip(valid, cells, strict=True):
        if cell is None:
            rows.loc[i, "failure"] = "no primitive cell to compare"


def properties(samples: Sequence[Sample]) -> pd.DataFrame:
    """Density (g/cm^3), number of elements and number of atoms of every sample that has a structure."""
    rows = [_properties(sample.structure) for sample in samples if sample.structure]
    return pd.DataFrame(rows, columns=["density", "num_elements", "num_atoms"])


@quiet()
def _row(sample: Sample, table: OxidationTable) -> dict[str, Any]:
    faults = [sample.failure, sample.failure]
    facts: dict[str, Any] = {}
    if sample.composition is not None:
        faults[1] = compositional_fault(sample.composition, table)
        facts |= {"formula": sample.composition.formula, "reduced_formula": sample.composition.reduced_formula}
    if sample.structure is not None:
        faults[0] = structural_fault(sample.structure)
        facts |= _properties(sample.structure) | {"volume": sample.structure.volume}
    valid = not any(faults)
    return facts | {
        "name": sample.name,
        "spacegroup": symmetry.spacegroup(sample.structure) if valid and sample.structure else None,
        "structurally_valid": not faults[0],
        "compositionally_valid": not faults[1],
        "valid": valid,
        "failure": "; ".join(dict.fromkeys(fault for fault in faults if fault)),
    }


def _properties(structure: Structure) -> dict[str, float | int]:
    return {
        "density": float(structure.density),
        "num_elements": len(structure.composition.element_composition),
        "num_atoms": len(structure),
    }
