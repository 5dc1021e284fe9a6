"""Columns about equal crystals: is a sample a repetition of an earlier one, or a crystal of the training set?"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from pymatgen.core import Structure
from tqdm import tqdm

from crystal_jax.evaluate.novelty import matcher
from crystal_jax.storage.worker_pool import map_in_order
from crystal_jax.structures import Entry, Sample
from crystal_jax.suppress_warnings import quiet

_TOLERANCES = (("", matcher.MATCHER), ("_loose", matcher.LOOSE_MATCHER))  # by the ending of the column


@quiet()
def primitive_cells(
    table: pd.DataFrame, samples: Sequence[Sample], *, workers: int | None = None, progress: bool = False
) -> dict[str, pd.Series]:
    """Returns `primitive_cell`, and `cell_failure` where there is none, of the samples that pass the checks.

    Args:
        table: the column `passes_checks`.
        samples: the samples.
        workers: processes; by default one per core.
        progress: whether to show a progress bar.
    """
    places = [i for i in table.index[table["passes_checks"]] if samples[i].structure is not None]
    whole = [structure for i in places if (structure := samples[i].structure) is not None]
    reduced = map_in_order(matcher.reduce_cell, whole, workers=workers, lost=lambda _: None)
    cells = list(tqdm(reduced, "primitive cells", len(whole), unit="crystal", disable=not progress))
    column = pd.Series([None] * len(table), dtype=object)
    for i, cell in zip(places, cells, strict=True):
        column[i] = cell
    lost = column.isna() & table["passes_checks"]
    return {"primitive_cell": column, "cell_failure": lost.map({True: "no primitive cell to compare", False: None})}


@quiet()
def uniqueness(table: pd.DataFrame, *, progress: bool = False) -> dict[str, pd.Series]:
    """Returns `unique` and `unique_loose` of the samples that pass the checks: no earlier one is the same crystal.

    Args:
        table: the columns `passes_checks` and `primitive_cell`.
        progress: whether to show a progress bar.
    """
    chosen, cells = _cells(table)
    return {
        f"unique{ending}": pd.Series(
            matcher.is_first_occurrence(cells, tolerances=tolerances, progress=progress), chosen, dtype="boolean"
        )
        for ending, tolerances in _TOLERANCES
    }


@quiet()
def newness(table: pd.DataFrame, train: Sequence[Entry], *, progress: bool = False) -> dict[str, pd.Series]:
    """Returns `novel`, `novel_loose` and `matched_train_id` of the samples that pass the checks.

    Args:
        table: the columns `passes_checks` and `primitive_cell`.
        train: the training set.
        progress: whether to show a progress bar.
    """
    chosen, cells = _cells(table)
    known = matcher.group_by_formula(train, cells, progress=progress)
    found: dict[str, pd.Series] = {}
    for ending, tolerances in _TOLERANCES:
        names = matcher.find_matches(known, cells, tolerances=tolerances, progress=progress)
        new = [cell is not None and name is None for cell, name in zip(cells, names, strict=True)]
        found[f"novel{ending}"] = pd.Series(new, chosen, dtype="boolean")
        if not ending:
            found["matched_train_id"] = pd.Series(names, chosen, dtype="str")
    return found


def _cells(table: pd.DataFrame) -> tuple[pd.Index, list[Structure | None]]:
    """Returns the rows that pass the checks, and their primitive cells."""
    chosen = table.index[table["passes_checks"]]
    return chosen, list(table.loc[chosen, "primitive_cell"])
