"""Finds duplicate crystals, and crystals of the training set, with pymatgen's StructureMatcher.

Two crystals are the same if the matcher says so at given tolerances, on primitive cells scaled to equal volume. Only
crystals of the same reduced formula are compared. A failure of the matcher counts against the sample: a crystal without
a primitive cell is neither unique nor new, and two crystals that cannot be compared count as the same.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from pymatgen.core import Structure
from pymatgen.core.structure_matcher import StructureMatcher
from tqdm import tqdm

from crystal_jax.structures import Entry, parse
from crystal_jax.structures.formula import without_hydrogen
from crystal_jax.suppress_warnings import quiet

Tolerances = Mapping[str, Any]  # arguments of StructureMatcher

# pymatgen's defaults, which MatterGen uses too, written out because uniqueness and novelty depend on them.
MATCHER: Tolerances = {
    "ltol": 0.2,  # relative difference of lengths
    "stol": 0.3,  # distance between sites, in units of (volume / atoms)^(1/3)
    "angle_tol": 5,  # degrees
    "scale": True,  # scale to equal volume per atom
}
# Tolerances of CDVAE's reconstruction metrics; crystal structure prediction uses them as well.
LOOSE_MATCHER: Tolerances = {"ltol": 0.3, "stol": 0.5, "angle_tol": 10, "scale": True}

_MATCHER_FAILURES = (ValueError, ArithmeticError, IndexError, np.linalg.LinAlgError)


@quiet()
def reduce_cell(structure: Structure) -> Structure | None:
    """Returns the Niggli-reduced primitive cell, which is used in comparisons; None if it cannot be found."""
    try:
        return structure.get_reduced_structure(reduction_algo="niggli").get_primitive_structure()
    except _MATCHER_FAILURES:
        return None


def is_first_occurrence(
    cells: Sequence[Structure | None], *, tolerances: Tolerances = MATCHER, progress: bool = False
) -> list[bool]:
    """Returns, for each reduced cell, whether no earlier cell is the same crystal.

    The number of true values is the number of distinct crystals.
    """
    distinct: dict[str, list[Structure]] = defaultdict(list)
    verdicts = []
    for cell in tqdm(cells, "uniqueness", unit="crystal", disable=not progress):
        new = cell is not None and not any(_same(cell, other, tolerances) for other in distinct[cell.reduced_formula])
        if new and cell is not None:
            distinct[cell.reduced_formula].append(cell)
        verdicts.append(new)
    return verdicts


Known = Mapping[str, Sequence[tuple[str, Structure]]]  # reduced formula to names and reduced cells


def group_by_formula(entries: Iterable[Entry], cells: Sequence[Structure | None], *, progress: bool = False) -> Known:
    """Returns the crystals of `entries`, a training set, that have the formula of one of the cells.

    Only entries that state such a formula, or state none, are parsed: `parse` fails if the sites have other elements
    than stated. Crystals that cannot be read are skipped, and a line on stderr gives their number.
    """
    wanted: set[str] = {cell.reduced_formula for cell in cells if cell is not None}
    known: dict[str, list[tuple[str, Structure]]] = defaultdict(list)
    parsed, unread = 0, []
    for entry in tqdm(list(entries), "training set", unit="crystal", disable=not progress):
        stated = entry.stated_composition()
        # A crystal may lack hydrogens that its stated formula has.
        if stated is not None and not wanted & {stated.reduced_formula, without_hydrogen(stated).reduced_formula}:
            continue
        parsed += 1
        sample = parse(entry)
        if sample.structure is None:
            unread.append(f"{entry.where or entry.name}: {sample.failure}")
            continue
        if (reduced := reduce_cell(sample.structure)) is not None:
            known[reduced.reduced_formula].append((entry.name, reduced))
    if unread:
        share = f"{len(unread)} of {parsed} crystals with the samples' formulas"
        print(f"training set: {share} cannot be read; the first is {unread[0]}", file=sys.stderr)
    return known


def find_matches(
    known: Known, cells: Sequence[Structure | None], *, tolerances: Tolerances = MATCHER, progress: bool = False
) -> list[str | None]:
    """Returns, for each reduced cell, the name of the first known crystal that is the same, or None."""
    return [
        None if cell is None else _first(known.get(cell.reduced_formula, ()), cell, tolerances)
        for cell in tqdm(cells, "novelty", unit="crystal", disable=not progress)
    ]


def absent_from(entries: Iterable[Entry], cells: Sequence[Structure | None]) -> list[bool]:
    """Returns, for each reduced cell, whether no crystal of `entries` is the same."""
    names = find_matches(group_by_formula(entries, cells), cells)
    return [cell is not None and name is None for cell, name in zip(cells, names, strict=True)]


def _first(known: Sequence[tuple[str, Structure]], cell: Structure, tolerances: Tolerances) -> str | None:
    return next((name for name, other in known if _same(cell, other, tolerances)), None)


def _same(cell: Structure, other: Structure, tolerances: Tolerances) -> bool:
    try:
        return bool(StructureMatcher(**tolerances).fit(cell, other, skip_structure_reduction=True))
    except _MATCHER_FAILURES:
        return True
