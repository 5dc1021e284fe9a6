"""Ranks the samples that are worth a closer look.

A candidate is valid, repeats no earlier sample and, if a training set was given, is not in it. If it was relaxed, its
columns describe the relaxed crystal, and columns named `generated_` describe the crystal that the model wrote.

Plausible crystals come first, then crystals with a complete hull before those with a lower bound, then low energies
above the hull. At equal energies, crystals with a symmetry come first. A candidate without an energy above the hull has
no rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

_SAME_ENERGY = 1e-3  # eV/atom; models do not resolve smaller differences, so symmetry decides

# Columns of `candidates.csv`.
COLUMNS = (
    "rank",  # by energy above the hull; empty without one
    "name",
    "reduced_formula",
    "spacegroup",
    "num_atoms",
    "e_above_hull",  # eV/atom
    "lower_bound",  # the hull is incomplete in this system: the true value is at least this
    "energy_per_atom",  # eV
    "formation_energy_per_atom",  # eV
    "decomposes_to",
    "known_in_system",
    "stable_in_system",
    "stable_missing",
    "new",  # not in the training set, and of a formula that the Materials Project lacks
    "known_formula",
    "plausible",
    "oxidation_states",
    "density",  # g/cm^3
    "cell",  # "relaxed" or "generated": the crystal that spacegroup, density and plausible describe
    "generated_spacegroup",
    "generated_density",
    "nearest_known",
    "structure_distance",
    "composition_distance",
    "relaxation_status",
    "perplexity",
    "dft_status",
    "e_above_hull_dft",  # eV/atom
)


def candidates(rows: pd.DataFrame) -> pd.DataFrame:
    """Selects the candidates among the rows of `structures.csv` and ranks them."""
    chosen = rows[rows["valid"] & rows["unique"].fillna(False) & rows["novel"].fillna(True)]
    relaxed = chosen["relaxed_density"].notna()
    known = chosen["known_formula"]
    table = chosen.assign(
        cell=relaxed.map({True: "relaxed", False: "generated"}),
        generated_spacegroup=chosen["spacegroup"],
        generated_density=chosen["density"],
        spacegroup=chosen["relaxed_spacegroup"].where(relaxed, chosen["spacegroup"]),
        density=chosen["relaxed_density"].where(relaxed, chosen["density"]),
        plausible=chosen["relaxed_plausible"].where(relaxed, chosen["plausible"].astype("boolean")),
        new=(chosen["novel"] & ~known.fillna(False)).where(chosen["novel"].notna(), ~known),
    )
    order = pd.DataFrame(
        {
            "implausible": ~table["plausible"].fillna(False).astype(bool),
            "unranked": table["e_above_hull"].isna(),
            "lower_bound": table["lower_bound"].fillna(False).astype(bool),
            "energy": (table["e_above_hull"] / _SAME_ENERGY).round(),
            "no_symmetry": (table["spacegroup"].fillna(1) == 1).astype(bool),
        }
    )
    table = table.loc[order.sort_values(list(order.columns), kind="stable").index]
    ranked = table["e_above_hull"].notna()
    return table.assign(rank=ranked.cumsum().where(ranked).astype("Int64"))[list(COLUMNS)]


def write_cifs(ranked: pd.DataFrame, cifs: Mapping[str, str], folder: Path) -> None:
    """Writes a CIF file per candidate, named by rank and formula, and deletes those of an earlier evaluation.

    Args:
        ranked: table returned by `candidates`.
        cifs: CIFs by sample name; the relaxed crystal if there is one.
        folder: folder to write to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.cif"):
        old.unlink()
    for place, (name, formula) in enumerate(zip(ranked["name"], ranked["reduced_formula"], strict=True), start=1):
        (folder / f"{place:05d}_{formula}.cif").write_text(cifs[name], encoding="utf-8")


def missing_for_a_rank(metrics: Mapping[str, object]) -> str | None:
    """Returns what an evaluation lacks to rank its candidates, and how to get it; None if they are ranked."""
    if "metastable" in metrics:
        return None
    if "relaxed" in metrics:
        return "not ranked: there is no convex hull; pass --hull=FILE (docs/METRICS.md says where to get one)"
    return "not ranked: there are no energies; pass --energy_model=m3gnet and --hull=FILE (docs/METRICS.md)"
