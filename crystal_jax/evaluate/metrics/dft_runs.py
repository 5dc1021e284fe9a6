"""Stores DFT results in an evaluation's folder, so that evaluating the samples again does not lose them.

`crystal-jax dft collect` writes the file; the columns `dft_status` and `e_above_hull_dft` are filled in from it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from crystal_jax import old_names
from crystal_jax.energy.settings import STABLE
from crystal_jax.evaluate.metrics.rate import Rate
from crystal_jax.old_names import present_types
from crystal_jax.storage.files import write_text
from crystal_jax.tables import read_frame, read_rows, to_csv

FILE = "dft.csv"
_COLUMNS = {"name": "str", "formula": "str", "dft_status": "str", "e_above_hull_dft": "float64"}


def keep(rows: pd.DataFrame, folder: Path) -> None:
    """Writes the DFT results of the samples that were computed."""
    write_text(folder / FILE, to_csv(rows.loc[rows["dft_status"].notna(), list(_COLUMNS)]))


def dft_columns(table: pd.DataFrame, folder: Path) -> dict[str, pd.Series]:
    """Returns `dft_status` and `e_above_hull_dft` of the samples whose name and formula are in the folder's file.

    Args:
        table: the columns `name` and `formula`.
        folder: the folder of the evaluation, in which `keep` wrote the file.
    """
    types, present = present_types(read_rows(folder / FILE).columns, _COLUMNS, old_names.COLUMNS)
    known = read_frame(folder / FILE, types).rename(columns=present).set_index(["name", "formula"])
    keys = pd.MultiIndex.from_frame(table[["name", "formula"]])
    names = ("dft_status", "e_above_hull_dft")
    return {name: pd.Series(known[name].reindex(keys).to_numpy(), table.index) for name in names}


def metrics_of(rows: pd.DataFrame, total: int) -> dict[str, Any]:
    """Returns `stable_dft`, the samples below 0 eV/atom of `total`, and `dft_status_counts`, counts of how runs ended.
    Returns nothing if there are no DFT results.
    """
    if rows["dft_status"].isna().all():
        return {}
    return {
        "stable_dft": Rate(int((rows["e_above_hull_dft"] < STABLE).sum()), total).as_dict(),
        "dft_status_counts": rows["dft_status"].value_counts().to_dict(),
    }
