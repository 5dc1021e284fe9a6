"""Ranks the samples that are worth a closer look.

A candidate is valid, repeats no earlier sample and, if a training set was given, is not in it. If it was relaxed, its
columns describe the relaxed crystal, and columns named `generated_` describe the crystal that the model wrote.

Plausible crystals come first, and compounds before elements, whose crystals are known. Crystals with a complete hull
come before those with a lower bound, and these are ordered by how much of the competition the hull lacks; then low
energies above the hull come first. At equal energies, crystals with a symmetry come first. A candidate without an
energy above the hull has no rank.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from crystal_jax.storage.worker_pool import map_in_order
from crystal_jax.structures import Entry, parse
from crystal_jax.structures.symmetrized import symmetrized_cif

SYMPREC = 0.1  # Å, of the space groups in which candidates are written
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
    "known_crystal",  # the Materials Project has this formula in this space group
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
            "element": ~table["reduced_formula"].astype(str).str.contains("[A-Z].*[A-Z]", regex=True),
            "lower_bound": table["lower_bound"].fillna(False).astype(bool),
            "incompleteness": _incompleteness(table),
            "energy": (table["e_above_hull"] / _SAME_ENERGY).round(),
            "no_symmetry": (table["spacegroup"].fillna(1) == 1).astype(bool),
        }
    )
    table = table.loc[order.sort_values(list(order.columns), kind="stable").index]
    ranked = table["e_above_hull"].notna()
    return table.assign(rank=ranked.cumsum().where(ranked).astype("Int64"))[list(COLUMNS)]


def _incompleteness(table: pd.DataFrame) -> pd.Series:
    """Returns how much of the competition the hull lacks where heights are lower bounds, in quarters; 0 elsewhere.

    It is the share of the stable compounds that the hull lacks. Without a list of these, it is all or nothing: whether
    the hull has a material of exactly these elements.
    """
    missing = table["stable_missing"].astype("float64") / table["stable_in_system"].astype("float64")
    unlisted = (table["known_in_system"].fillna(0) == 0).astype("float64")
    quarters = (4 * missing.fillna(unlisted)).apply(math.ceil)
    return quarters.where(table["lower_bound"].fillna(False).astype(bool), 0)


@dataclasses.dataclass(frozen=True)
class CandidateCifs:
    """CIFs of a sample as text: as generated, and relaxed, if it was."""

    generated: str
    relaxed: str | None

    @property
    def final(self) -> str:
        """The relaxed crystal if there is one, in the cell that was relaxed, without symmetry."""
        return self.relaxed or self.generated


def write_cifs(
    ranked: pd.DataFrame, cifs: Mapping[str, CandidateCifs], folder: Path, *, workers: int | None = None
) -> None:
    """Writes CIF files of the candidates, named by rank and formula, and deletes those of an earlier evaluation.

    `FOLDER/*.cif` are the relaxed crystals in their space groups (symprec `SYMPREC`), conventional cells; of crystals
    that were not relaxed, what the model wrote. `FOLDER/p1` has the relaxed cells without symmetry, and
    `FOLDER/generated` what the model wrote.

    Args:
        ranked: table returned by `candidates`.
        cifs: CIFs by sample name.
        folder: folder to write to.
        workers: processes; by default one per core.
    """
    for part in (folder, folder / "p1", folder / "generated"):
        part.mkdir(parents=True, exist_ok=True)
        for old in part.glob("*.cif"):
            old.unlink()
    chosen = [cifs[name] for name in ranked["name"]]
    symmetric = map_in_order(_symmetrized, [each.relaxed for each in chosen], workers=workers, lost=lambda _: None)
    for place, (each, cif, formula) in enumerate(
        zip(chosen, symmetric, ranked["reduced_formula"], strict=True), start=1
    ):
        name = f"{place:05d}_{formula}.cif"
        (folder / name).write_text(cif or each.final, encoding="utf-8")
        (folder / "generated" / name).write_text(each.generated, encoding="utf-8")
        if each.relaxed is not None:
            (folder / "p1" / name).write_text(each.relaxed, encoding="utf-8")


def _symmetrized(cif: str | None) -> str | None:
    structure = parse(Entry("", cif)).structure if cif else None
    return symmetrized_cif(structure, symprec=SYMPREC) if structure else None


def missing_for_a_rank(metrics: Mapping[str, object]) -> str | None:
    """Returns what an evaluation lacks to rank its candidates, and how to get it; None if they are ranked."""
    if "metastable" in metrics:
        return None
    if "relaxed" in metrics:
        return "not ranked: there is no convex hull; pass --hull=FILE (docs/METRICS.md says where to get one)"
    return "not ranked: there are no energies; pass --energy_model=m3gnet"
