"""Builds VASP inputs for metastable crystals, with the settings of the Materials Project."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from pymatgen.core import Structure
from pymatgen.io.vasp.sets import MPRelaxSet
from tqdm import tqdm

from crystal_jax.energy.relaxation.journal import key_of, read_journals
from crystal_jax.energy.settings import METASTABLE
from crystal_jax.errors import UserError
from crystal_jax.evaluate.evaluation import read_evaluation
from crystal_jax.json_files import finite
from crystal_jax.storage.files import as_path, is_new, new_folder, write_text
from crystal_jax.structures import Entry, parse, read_entries
from crystal_jax.suppress_warnings import quiet
from crystal_jax.tables import to_csv

MANIFEST = "manifest.csv"


@quiet()
def write_inputs(evaluation: Path | str, *, output: Path | str, below: float = METASTABLE) -> Path:
    """Writes the inputs and returns the path of the manifest.

    Args:
        evaluation: folder written by `evaluate`, with energies above the hull.
        output: a new folder.
        below: largest energy above the hull, eV/atom.

    Raises:
        UserError: the evaluation has no such energies, its samples are missing, or the output is not empty.
    """
    evaluation, output = as_path(evaluation, "evaluation"), as_path(output, "output").absolute()
    if finite(below) is None:
        raise UserError(f"below is {below!r:.60}; it must be a finite number, in eV/atom")
    if not is_new(output):
        raise UserError(f"{output} is not empty; choose another --output")
    rows, crystals = _relaxed(evaluation)
    chosen = rows[rows["e_above_hull"] < below].sort_values("e_above_hull").to_dict("records")
    without = {row["name"]: symbols for row in chosen if (symbols := _without_potcar(crystals[row["name"]]))}
    _report_skipped(without)
    if chosen and len(without) == len(chosen):
        raise UserError(
            f"{evaluation}: no inputs were written: every crystal has an element without a POTCAR in MPRelaxSet"
        )
    with new_folder(output) as half:
        manifest = [
            _write_one(f"{number:05d}", row, crystals[row["name"]], half)
            for number, row in enumerate(
                tqdm([row for row in chosen if row["name"] not in without], "inputs", unit="crystal")
            )
        ]
        table = pd.DataFrame(manifest, columns=["folder", "name", "formula", "e_above_hull", "potcar"])
        write_text(half / MANIFEST, to_csv(table))
    return output / MANIFEST


def _write_one(number: str, row: dict[str, Any], structure: Structure, output: Path) -> dict[str, Any]:
    """Writes the inputs of one crystal to a folder of its own; returns its row of the manifest."""
    folder = f"{number}_{structure.composition.reduced_formula}"
    inputs = MPRelaxSet(structure)
    inputs.write_input(str(output / folder), potcar_spec=True)
    return {
        "folder": folder,
        "name": row["name"],
        "formula": structure.composition.formula,
        "e_above_hull": row["e_above_hull"],
        "potcar": " ".join(inputs.potcar_symbols),
    }


def _without_potcar(structure: Structure) -> list[str]:
    """Returns the elements of a crystal for which the Materials Project's settings have no pseudopotential."""
    known = MPRelaxSet.CONFIG["POTCAR"]
    return [element.symbol for element in structure.composition.elements if element.symbol not in known]


def _report_skipped(without: Mapping[str, list[str]]) -> None:
    for name, symbols in without.items():
        print(f"left out: {name}: MPRelaxSet has no POTCAR of {', '.join(symbols)}", file=sys.stderr)


def _relaxed(evaluation: Path) -> tuple[pd.DataFrame, dict[str, Structure]]:
    """Returns the evaluation's rows, and its relaxed crystals by name."""
    found = read_evaluation(evaluation)
    rows = found.table
    if found.json.part("samples").get("path") is None:
        raise UserError(
            f"{evaluation} is of structures in memory; evaluate a file of them, such as an extended XYZ file"
        )
    samples = Path(found.json.part("samples").text("path"))
    if rows["e_above_hull"].isna().all():
        raise UserError(f"{evaluation} has no energies above the hull; evaluate with --energy_model and --hull")
    journals = read_journals(evaluation / "relaxations")
    crystals = {}
    for entry in read_entries(samples):
        row = journals.get(key_of(parse(entry).cif))
        if row and row["relaxed_cif"]:
            structure = parse(Entry(entry.name, row["relaxed_cif"])).structure
            if structure is not None:
                crystals[entry.name] = structure
    wanted = rows.loc[rows["e_above_hull"].notna(), "name"]
    if missing := [name for name in wanted if name not in crystals]:
        raise UserError(
            f"{evaluation}: relaxations/ lacks the relaxed crystal of {missing[0]}; run 'crystal-jax evaluate' again"
        )
    return rows, crystals
