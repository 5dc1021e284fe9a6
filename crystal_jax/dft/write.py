"""Writes VASP inputs for the crystals that an evaluation found metastable, with the Materials Project's settings.

Each crystal gets a folder of --output with INCAR, KPOINTS, POSCAR (the relaxed crystal) and POTCAR.spec, which names
the pseudopotentials; POTCAR itself is licensed and must be put there by you. manifest.csv says which crystal each
folder has. When the calculations are done, 'crystal-jax dft collect' reads them back.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
from absl import flags
from pymatgen.core import Structure
from pymatgen.io.vasp.sets import MPRelaxSet
from tqdm import tqdm

from crystal_jax.errors import UserError
from crystal_jax.evaluate import structures
from crystal_jax.evaluate.energy.hull import METASTABLE
from crystal_jax.evaluate.energy.jobs import key_of, read_journals
from crystal_jax.files import write_text
from crystal_jax.quiet import quiet
from crystal_jax.structures import Entry, parse, read_entries

MANIFEST = "manifest.csv"


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags of `crystal-jax dft write`."""
    flags.DEFINE_string(
        "evaluation", None, "Folder written by 'evaluate' with --hull.", required=True, flag_values=flag_values
    )
    flags.DEFINE_string("output", None, "Folder for the inputs; must be new.", required=True, flag_values=flag_values)
    flags.DEFINE_float(
        "below", METASTABLE, "Only crystals below this energy above the hull, eV/atom.", flag_values=flag_values
    )


def main(flag_values: flags.FlagValues) -> None:
    """Runs `crystal-jax dft write`."""
    manifest = write(Path(flag_values.evaluation), output=Path(flag_values.output), below=flag_values.below)
    print(f"{len(pd.read_csv(manifest))} calculations; written: {manifest}")


@quiet()
def write(evaluation: Path, *, output: Path, below: float = METASTABLE) -> Path:
    """Writes the inputs and returns the path of the manifest.

    Args:
        evaluation: folder written by `evaluate`, with energies above the hull.
        output: a new folder.
        below: eV/atom above the hull.

    Raises:
        UserError: the evaluation has no such energies or its samples have gone, or the output is not empty.
    """
    if output.exists() and any(output.iterdir()):
        raise UserError(f"{output} is not empty; choose another --output")
    rows, crystals = _relaxed(evaluation)
    chosen = rows[rows["e_above_hull"] < below].sort_values("e_above_hull")
    manifest: list[dict[str, Any]] = []
    for row in tqdm(chosen.to_dict("records"), "inputs", unit="crystal"):
        structure = crystals[row["name"]]
        folder = f"{len(manifest):05d}_{row['reduced_formula']}"
        inputs = MPRelaxSet(structure)
        inputs.write_input(str(output / folder), potcar_spec=True)
        manifest.append(
            {
                "folder": folder,
                "name": row["name"],
                "formula": structure.composition.formula,
                "e_above_hull": row["e_above_hull"],
                "potcar": " ".join(inputs.potcar_symbols),
            }
        )
    columns = ["folder", "name", "formula", "e_above_hull", "potcar"]
    path = output / MANIFEST
    write_text(path, pd.DataFrame(manifest, columns=columns).to_csv(index=False))
    return path


def _relaxed(evaluation: Path) -> tuple[pd.DataFrame, dict[str, Structure]]:
    """The evaluation's rows, and its relaxed crystals by name."""
    try:
        rows = pd.read_csv(evaluation / "structures.csv", dtype=structures.COLUMNS)
        samples = Path(json.loads((evaluation / "metrics.json").read_text(encoding="utf-8"))["samples"]["path"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{evaluation}: not the --output of 'crystal-jax evaluate' ({error})") from error
    if rows["e_above_hull"].isna().all():
        raise UserError(f"{evaluation} has no energies above the hull; evaluate with --energy_model and --hull")
    journals = read_journals(evaluation / "relaxations")
    crystals = {}
    for entry in read_entries(samples):
        row = journals.get(key_of(entry.cif))
        if row and row["relaxed_cif"]:
            structure = parse(Entry(entry.name, row["relaxed_cif"])).structure
            if structure is not None:
                crystals[entry.name] = structure
    wanted = rows.loc[rows["e_above_hull"].notna(), "name"]
    if missing := [name for name in wanted if name not in crystals]:
        raise UserError(f"{evaluation}: the relaxed crystal of {missing[0]} has gone; evaluate again")
    return rows, crystals
