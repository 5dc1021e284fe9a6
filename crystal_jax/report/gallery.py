"""Selects crystals for the gallery and prepares them for the page's viewer."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
from markupsafe import Markup
from pymatgen.core import Structure
from pymatgen.util.string import unicodeify

from crystal_jax.energy.convex_hull.hull import Hull
from crystal_jax.energy.relaxation.journal import key_of, read_journals
from crystal_jax.errors import UserError
from crystal_jax.evaluate.candidates import SYMPREC, candidates
from crystal_jax.report import elements, hull_diagram, xrd
from crystal_jax.report.drawing import drawing
from crystal_jax.report.groups import symbol
from crystal_jax.structures import Entry, parse
from crystal_jax.structures.read import collect
from crystal_jax.structures.symmetrized import symmetrized_cif
from crystal_jax.symmetry.crystal import SymmetricCrystal, SymmetryError

GALLERY_SIZE = 12


def gallery(rows: pd.DataFrame, samples: Path, relaxations: Path, hull: Hull | None = None) -> list[dict[str, Any]]:
    """Returns cards of the best candidates, with relaxed crystals if available; empty if the samples file is missing.

    Args:
        rows: `structures.csv`.
        samples: the evaluated file or folder.
        relaxations: the folder of relaxed crystals.
        hull: the hull that the energies were compared with, if it can still be read.
    """
    table = candidates(rows).head(GALLERY_SIZE)
    try:
        entries = {entry.name: entry for entry in collect(samples).entries}
        relaxed = read_journals(relaxations)
    except UserError:
        return []
    cards = []
    for row in table.to_dict("records"):
        entry = entries.get(row["name"])
        sample = parse(entry) if entry else None
        if sample is None or sample.structure is None or sample.structure.reduced_formula != row["reduced_formula"]:
            continue
        found = relaxed.get(key_of(sample.cif)) if row["cell"] == "relaxed" else None
        cif = (found and found["relaxed_cif"]) or sample.cif
        structure = parse(Entry(sample.name, cif)).structure
        if structure is not None:
            cards.append(_card(row, structure, cif, hull, generated=sample.cif if cif != sample.cif else None))
    return cards


def _card(
    row: Mapping[Hashable, Any], structure: Structure, cif: str, hull: Hull | None, *, generated: str | None
) -> dict[str, Any]:
    conventional = _conventional(structure)
    lattice = conventional.lattice
    number = None if pd.isna(row["spacegroup"]) else int(row["spacegroup"])
    before = None if pd.isna(row["generated_spacegroup"]) else int(row["generated_spacegroup"])
    return {
        "name": row["name"],
        "formula": unicodeify(row["reduced_formula"]),
        "file": f"{row['reduced_formula']}-{row['name']}.cif",
        "spacegroup": number and f"{symbol(number)} ({number})",
        "lengths": " × ".join(f"{length:.2f}" for length in lattice.abc),
        "angles": ", ".join(f"{angle:.1f}" for angle in lattice.angles),
        "density": structure.density,
        "num_atoms": len(conventional),
        "e_above_hull": None
        if pd.isna(row["e_above_hull"])
        else round(row["e_above_hull"], 3) + 0.0,  # no negative zero
        "lower_bound": row["lower_bound"] is True,
        "elements": [(name, elements.color(name)) for name in sorted(structure.symbol_set)],
        "cif": _link(symmetrized_cif(structure, symprec=SYMPREC) or cif),
        "p1_cif": generated and _link(cif),
        "generated_cif": generated and _link(generated),
        "generated_file": f"{row['reduced_formula']}-{row['name']}-generated.cif",
        "generated_spacegroup": before and f"{symbol(before)} ({before})",
        "generated_density": row["generated_density"],
        "xrd": xrd.pattern(structure),
        "hull_diagram": _diagram(row, structure, hull),
        "decomposes_to": None if pd.isna(row["decomposes_to"]) else row["decomposes_to"],
        "new": None if pd.isna(row["new"]) else bool(row["new"]),
        "drawing": drawing(conventional),
    }


def _conventional(structure: Structure) -> Structure:
    """Returns the conventional cell of a crystal; the given one if its symmetry has no description."""
    try:
        return SymmetricCrystal.from_structure(structure, symprec=SYMPREC).to_structure(primitive=False)
    except SymmetryError:
        return structure


def _diagram(row: Mapping[Hashable, Any], structure: Structure, hull: Hull | None) -> Markup | None:
    """Returns the hull of the crystal's chemical system; None without a hull, and for single elements."""
    if hull is None or pd.isna(row["e_above_hull"]) or len(structure.symbol_set) == 1:
        return None
    shares = structure.composition.fractional_composition.get_el_amt_dict()
    energies = (float(row["formation_energy_per_atom"]), float(row["e_above_hull"]))
    return hull_diagram.hull_diagram(hull, str(row["reduced_formula"]), shares, *energies)


def _link(cif: str) -> str:
    return f"data:chemical/x-cif;charset=utf-8,{quote(cif)}"
