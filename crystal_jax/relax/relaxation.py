"""Relaxes given crystals: relaxation, corrections, energies above the hull, files."""

from __future__ import annotations

import dataclasses
import tempfile
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from pymatgen.core import Structure

from crystal_jax.energy.convex_hull.choose import choose_hull
from crystal_jax.energy.convex_hull.known_materials import load_known_materials
from crystal_jax.energy.model import includes_corrections
from crystal_jax.energy.relaxation.journal import key_of
from crystal_jax.energy.relaxation.runner import relax_all
from crystal_jax.energy.settings import METASTABLE
from crystal_jax.evaluate.chemistry.symmetry import spacegroup
from crystal_jax.evaluate.metrics import stability
from crystal_jax.relax.config import RelaxConfig
from crystal_jax.storage.files import write_text
from crystal_jax.structures import Entry, Sample, entries_of, parse
from crystal_jax.structures.symmetrized import symmetrized_cif
from crystal_jax.tables import to_csv

COLUMNS = (
    "name",
    "formula",
    "status",
    "reason",
    "steps",
    "energy_per_atom",  # eV/atom, with the MP2020 corrections
    "e_above_hull",  # eV/atom
    "lower_bound",
    "known_in_system",
    "known_crystal",
    "decomposes_to",
    "spacegroup",
    "relaxed_spacegroup",
    "relaxation_rmsd",  # Å
    "relaxed_volume",  # Å^3
    "cif",  # the relaxed crystal
)


@dataclasses.dataclass(frozen=True)
class Relaxation:
    """Result of relaxing given crystals.

    Attributes:
        table: one row per crystal, with the columns `COLUMNS`.
    """

    table: pd.DataFrame

    @cached_property
    def structures(self) -> list[Structure | None]:
        """The relaxed crystals in the order of the table; None where a relaxation failed."""
        return [None if pd.isna(cif) else parse(Entry("", str(cif))).structure for cif in self.table["cif"]]

    def __str__(self) -> str:
        """Returns a few lines for people."""
        statuses = ", ".join(f"{number} {status}" for status, number in Counter(self.table["status"]).most_common())
        lines = [f"{len(self.table)} crystals: {statuses}"]
        heights = self.table["e_above_hull"].dropna()
        if len(heights):
            low = int((heights < METASTABLE).sum())
            lines.append(f"{low} of {len(heights)} are below {METASTABLE:g} eV/atom above the hull")
        return "\n".join(lines)


def relax_structures(config: RelaxConfig) -> Relaxation:
    """Relaxes crystals; see `relax.run.relax`."""
    samples = [parse(entry) for entry in entries_of(config.structures, name="structures")]
    hull = choose_hull(config.energy_model, config.hull, config.hull_elements)
    readable = [i for i, sample in enumerate(samples) if sample.structure is not None]
    with tempfile.TemporaryDirectory() as temporary:
        rows = relax_all(
            [samples[i].cif for i in readable],
            config.relax_job,
            Path(config.output or temporary) / "relaxations",
            workers=config.workers,
            ray_address=config.ray_address,
            progress=config.progress,
        )
    found = {i: rows[key_of(samples[i].cif)] for i in readable}
    table = pd.DataFrame(
        {
            "relaxed_cif": pd.Series({i: row["relaxed_cif"] for i, row in found.items()}, dtype="str"),
            "relaxed_energy": pd.Series({i: row["energy"] for i, row in found.items()}, dtype="float64"),
        },
        index=range(len(samples)),
    )
    energies = stability.energy_columns(
        table,
        samples,
        hull,
        load_known_materials(fetch=hull is not None),
        corrected=includes_corrections(config.energy_model),
        progress=config.progress,
    )
    facts = [_facts(sample, found.get(i)) for i, sample in enumerate(samples)]
    result = pd.concat([pd.DataFrame(facts), energies.reindex(range(len(samples)))], axis=1)
    whole = dict.fromkeys(("steps", "spacegroup", "relaxed_spacegroup", "known_in_system"), "Int64")
    relaxation = Relaxation(result.reindex(columns=list(COLUMNS)).astype(whole))
    if config.output is not None:
        _write(Path(config.output), relaxation, symprec=config.symprec)
    return relaxation


def _facts(sample: Sample, row: dict[str, Any] | None) -> dict[str, Any]:
    """Returns the columns that need no energy."""
    facts: dict[str, Any] = {"name": sample.name}
    if sample.structure is None or row is None:
        return facts | {"status": "unreadable", "reason": sample.failure or "no structure"}
    return facts | {
        "formula": sample.structure.composition.formula.replace(" ", ""),
        "status": row["status"],
        "reason": row["reason"],
        "steps": row["steps"],
        "spacegroup": spacegroup(sample.structure),
        "cif": row["relaxed_cif"],
    }


def _write(folder: Path, relaxation: Relaxation, *, symprec: float) -> None:
    write_text(folder / "relaxed.csv", to_csv(relaxation.table))
    for name, structure, cif in zip(
        relaxation.table["name"], relaxation.structures, relaxation.table["cif"], strict=True
    ):
        if structure is not None:
            write_text(folder / "cif" / f"{name}_p1.cif", str(cif))
            write_text(folder / "cif" / f"{name}.cif", symmetrized_cif(structure, symprec=symprec) or str(cif))
