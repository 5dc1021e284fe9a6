"""Reads finished VASP runs, applies the MP2020 corrections, and computes energies above the hull."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pymatgen.core import Composition
from pymatgen.io.vasp.outputs import Vasprun
from tqdm import tqdm

from crystal_jax.dft.vasp_inputs import MANIFEST
from crystal_jax.energy.convex_hull.corrections import corrected
from crystal_jax.energy.convex_hull.hull import Hull
from crystal_jax.errors import UserError
from crystal_jax.evaluate.evaluation import Evaluation, read_evaluation, write_evaluation
from crystal_jax.evaluate.metrics import dft_runs
from crystal_jax.storage.files import as_path
from crystal_jax.suppress_warnings import quiet
from crystal_jax.tables import read_rows


@quiet()
def collect_results(evaluation: Path | str, *, runs: Path | str, hull: Hull) -> dict[str, Any]:
    """Reads the runs and returns what was added to `metrics.json`: `stable_dft` and `dft_status_counts`.

    The column `dft_status` states if a run is missing, cannot be read or has not converged; such a crystal counts as
    not stable.

    Args:
        evaluation: folder written by `evaluate`.
        runs: folder written by `vasp_inputs.write_inputs`.
        hull: the known materials.

    Raises:
        UserError: a folder has another content, or there are no runs.
    """
    evaluation, runs = as_path(evaluation, "evaluation"), as_path(runs, "runs")
    found = read_evaluation(evaluation)
    rows = found.table
    total = found.json.part("metastable").integer("total", least=0)
    manifest = _read_manifest(runs)
    place = {name: i for i, name in enumerate(rows["name"])}
    rows["dft_status"], rows["e_above_hull_dft"] = None, float("nan")
    for run in tqdm(manifest, "runs", unit="run"):
        if run["name"] not in place:
            raise UserError(f"{runs}: {run['name']} is no sample of {evaluation}; these are runs of another evaluation")
        ending, above = _read(runs / run["folder"], run["formula"], hull)
        rows.loc[place[run["name"]], "dft_status"] = ending
        rows.loc[place[run["name"]], "e_above_hull_dft"] = above
    if rows["dft_status"].isna().all():
        raise UserError(f"{runs}: {MANIFEST} names no run")
    added = dft_runs.metrics_of(rows, total)
    dft_runs.keep(rows, evaluation)
    write_evaluation(evaluation, Evaluation({**found.metrics, **added}, rows))
    return added


def _read_manifest(runs: Path) -> list[dict[str, str]]:
    """Reads the manifest of 'dft write'."""
    path, advice = runs / MANIFEST, "give the --output of 'crystal-jax dft write'"
    if not path.is_file():
        raise UserError(f"{runs} has no {MANIFEST}; {advice}")
    manifest = read_rows(path)
    if missing := [name for name in ("folder", "name", "formula") if name not in manifest.columns]:
        raise UserError(f"{path} lacks the column {missing[0]}; {advice}")
    return manifest.records()


def _read(folder: Path, formula: str, hull: Hull) -> tuple[str, float | None]:
    """Returns how a run ended, and its energy above the hull in eV/atom."""
    path = next((folder / name for name in ("vasprun.xml", "vasprun.xml.gz") if (folder / name).exists()), None)
    if path is None:
        return "no vasprun.xml", None
    try:
        run = Vasprun(path, parse_dos=False, parse_eigen=False, parse_potcar_file=False, exception_on_bad_xml=True)
        entry = run.get_computed_entry(inc_structure=True)
        # If INCAR names the functional, pymatgen uses that name, which the corrections do not know.
        if run.run_type.removesuffix("+U") in ("GGA", "PBE"):
            entry.parameters["run_type"] = "GGA+U" if run.is_hubbard else "GGA"
    except Exception:  # pymatgen raises many types of errors on damaged files
        return "unreadable", None
    if entry.composition.reduced_formula != _reduced(formula):
        return "another crystal", None
    if not has_converged(run):
        return "not converged", None
    try:
        energy = corrected(entry)
        return "converged", hull.height(entry.composition, energy / entry.composition.num_atoms).above
    except ValueError as reason:
        return str(reason), None


def _reduced(formula: str) -> str | None:
    """Returns the reduced formula in a manifest; None if it is not a formula."""
    try:
        return Composition(formula, strict=True).reduced_formula
    except (ValueError, TypeError, ArithmeticError):
        return None


def has_converged(run: Vasprun) -> bool:
    """Whether the electrons and ions of a run have converged.

    A relaxation must meet its break condition EDIFFG in its last step: a run ended by STOPCAR or a time limit also has
    fewer than NSW steps. A static calculation (NSW at most 1) has no such condition.
    """
    if not run.converged:  # electrons have not converged, or a relaxation used all its NSW steps
        return False
    if int(run.parameters.get("NSW") or 0) <= 1:
        return True
    limit = run.parameters.get("EDIFFG")
    limit = 10 * run.parameters.get("EDIFF", 1e-4) if limit is None else limit  # VASP's default
    steps = run.ionic_steps
    if limit < 0:  # eV/Å, limit on the largest force
        forces = np.linalg.norm(np.asarray(steps[-1]["forces"], float), axis=1)
        return bool(forces.max() <= -limit)
    if len(steps) < 2:
        return False
    return abs(steps[-1]["e_fr_energy"] - steps[-2]["e_fr_energy"]) <= limit  # eV, limit on the cell's energy change
