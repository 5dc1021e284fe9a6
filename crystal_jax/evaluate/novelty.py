"""Which crystals repeat one another, and which are in the training set? By pymatgen's StructureMatcher.

Two crystals are the same if the matcher says so at its default tolerances, on primitive cells scaled to equal
volume. Only crystals of one reduced formula are compared. What the matcher fails on counts against the
sample: a crystal without a primitive cell is neither unique nor new, and a pair that cannot be compared is
taken as the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from pymatgen.core import Structure
from pymatgen.core.structure_matcher import StructureMatcher
from tqdm import tqdm

from crystal_jax.evaluate.samples import Entry, parse

# pymatgen's defaults, written out because uniqueness and novelty depend on them.
MATCHER: dict[str, Any] = {
    "ltol": 0.2,  # relative difference of lengths
    "stol": 0.3,  # distance of sites, in units of (volume / atoms)^(1/3)
    "angle_tol": 5,  # degrees
    "scale": True,  # to equal volume per atom
}

_MATCHER_FAILURES = (ValueError, ArithmeticError, IndexError, np.linalg.LinAlgError)


def reduce_cell(structure: Structure) -> Structure | None:
    """The Niggli-reduced primitive cell, which is what is compared; None if there is none to be found."""
    try:
        return structure.get_reduced_structure(reduction_algo="niggli").get_primitive_structure()
    except _MATCHER_FAILURES:
        return None


def first_of_their_kind(cells: Sequence[Structure | None], *, progress: bool = False) -> list[bool]:
    """Says of each reduced cell whether no earlier one is the same crystal.

    The number of true ones is the number of distinct crystals.
    """
    distinct: dict[str, list[Structure]] = defaultdict(list)
    verdicts = []
    for cell in tqdm(cells, "uniqueness", unit="crystal", disable=not progress):
        new = cell is not None and not _is_among(cell, distinct[cell.reduced_formula])
        if new:
            distinct[cell.reduced_formula].append(cell)
        verdicts.append(new)
    return verdicts


def absent_from(entries: Iterable[Entry], cells: Sequence[Structure | None], *, progress: bool = False) -> list[bool]:
    """Says of each reduced cell whether it is no crystal of `entries`, a training set.

    Of the entries only those are parsed that state the formula of a cell (or state none).
    """
    wanted: set[str] = {cell.reduced_formula for cell in cells if cell is not None}
    known: dict[str, list[Structure]] = defaultdict(list)
    for entry in tqdm(list(entries), "training set", unit="crystal", disable=not progress):
        stated = entry.stated_composition()
        if stated is None or stated.reduced_formula in wanted:
            structure = parse(entry).structure
            reduced = reduce_cell(structure) if structure else None
            if reduced is not None:
                known[reduced.reduced_formula].append(reduced)
    return [
        cell is not None and not _is_among(cell, known[cell.reduced_formula])
        for cell in tqdm(cells, "novelty", unit="crystal", disable=not progress)
    ]


def _is_among(cell: Structure, others: Sequence[Structure]) -> bool:
    matcher = StructureMatcher(**MATCHER)
    try:
        return any(matcher.fit(cell, other, skip_structure_reduction=True) for other in others)
    except _MATCHER_FAILURES:
        return True
