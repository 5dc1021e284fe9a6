"""What a chemist takes away: the samples worth a closer look, the best first.

A candidate is valid, repeats no earlier sample and, where a training set was given, is not in it. The order is by
energy above the hull; candidates without one come last, in the order of the samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

# Columns of `candidates.csv`; all but the rank are those of `structures.csv`.
COLUMNS = (
    "rank",
    "name",
    "reduced_formula",
    "spacegroup",
    "relaxed_spacegroup",
    "num_atoms",
    "e_above_hull",  # eV/atom
    "formation_energy_per_atom",  # eV
    "decomposes_to",
    "known_in_system",
    "novel",
    "nearest_known",
    "structure_distance",
    "composition_distance",
    "density",  # g/cm^3
    "relaxation",
    "perplexity",
    "dft",
    "e_above_hull_dft",  # eV/atom
)


def candidates(rows: pd.DataFrame) -> pd.DataFrame:
    """Ranks the rows of `structures.csv` that are candidates."""
    chosen = rows["valid"] & rows["unique"].fillna(False) & rows["novel"].fillna(True)
    ranked = rows[chosen].sort_values("e_above_hull", kind="stable", na_position="last")
    return ranked.assign(rank=range(1, len(ranked) + 1))[list(COLUMNS)]


def write_cifs(ranked: pd.DataFrame, cifs: Mapping[str, str], folder: Path) -> None:
    """Writes a CIF of each candidate, named by rank and formula, in place of those of an earlier evaluation.

    Args:
        ranked: what `candidates` returns.
        cifs: by the samples' names: relaxed where they were relaxed.
        folder: to write to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.cif"):
        old.unlink()
    for rank, name, formula in zip(ranked["rank"], ranked["name"], ranked["reduced_formula"], strict=True):
        (folder / f"{rank:05d}_{formula}.cif").write_text(cifs[name], encoding="utf-8")
