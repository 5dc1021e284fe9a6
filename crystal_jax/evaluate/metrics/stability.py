"""Computes stability: relaxation, MP2020 corrections, energy above the convex hull, and the rates of these.

By default a rate's denominator is the number of scored rows: samples that are not valid or do not relax count as not
stable. In the mode "paper" the denominator is the number of valid samples of more than one atom that relaxed, as far as
the published evaluator tells.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pymatgen.core import Structure
from tqdm import tqdm

from crystal_jax.energy.convex_hull.corrections import SCHEME, energy_per_atom
from crystal_jax.energy.convex_hull.hull import Hull
from crystal_jax.energy.convex_hull.known_materials import KnownMaterials, reduced
from crystal_jax.energy.relaxation.journal import key_of
from crystal_jax.energy.settings import METASTABLE, STABLE, RelaxJob
from crystal_jax.evaluate.chemistry.symmetry import spacegroup
from crystal_jax.evaluate.chemistry.validity import implausible_reason, structural_invalid_reason
from crystal_jax.evaluate.metrics.rate import Rate
from crystal_jax.structures import Entry, Sample, parse

ENERGY_COLUMNS = (
    "energy_per_atom",
    "formation_energy_per_atom",
    "e_above_hull",
    "e_above_model_hull",
    "known_in_system",
    "stable_in_system",
    "stable_missing",
    "lower_bound",
    "decomposes_to",
    "relaxed_spacegroup",
    "known_crystal",
    "relaxed_density",
    "relaxed_volume",
    "relaxed_plausible",
    "relaxation_rmsd",
    "hull_failure",
)
MIN_COMPLETENESS = 0.9  # share of the known stable compounds of a sample's elements that a complete hull contains
MIN_PHASES = 2  # materials with exactly these elements that a complete hull contains, without a list of known materials


def relaxation_columns(
    table: pd.DataFrame,
    samples: Sequence[Sample],
    job: RelaxJob,
    folder: Path,
    *,
    paper_mode: bool,
    workers: int | None = None,
    ray_address: str | None = None,
    progress: bool = False,
) -> dict[str, pd.Series]:
    """Relaxes the valid samples; in the mode "paper" only those of more than one atom.

    Returns `relaxation_status`, `relaxation_steps`, `relaxed_cif`, `relaxed_energy` and `relaxation_failure`.

    Args:
        table: the columns `valid` and `num_atoms`.
        samples: the samples.
        job: model and settings of the relaxations.
        folder: folder of their logs; a folder of the same job is continued.
        paper_mode: whether rates are counted as published.
        workers: processes; by default one per core.
        ray_address: address of a Ray cluster to use instead.
        progress: whether to show a progress bar.

    Raises:
        UserError: see `relax_all`.
    """
    chosen = table["valid"] & ((table["num_atoms"] > 1) if paper_mode else True)
    # Here, because it imports JAX.
    from crystal_jax.energy.relaxation.runner import relax_all

    cifs = {i: samples[i].cif for i in table.index[chosen]}
    rows = relax_all(list(cifs.values()), job, folder, workers=workers, ray_address=ray_address, progress=progress)
    found = {i: rows[key_of(cif)] for i, cif in cifs.items()}
    failures = {i: f"relaxation {row['status']}: {row['reason']}" for i, row in found.items() if row["energy"] is None}
    return {
        "relaxation_status": pd.Series({i: row["status"] for i, row in found.items()}, dtype="str"),
        "relaxation_steps": pd.Series({i: row["steps"] for i, row in found.items()}, dtype="Int64"),
        "relaxed_cif": pd.Series({i: row["relaxed_cif"] for i, row in found.items()}, dtype="str"),
        "relaxed_energy": pd.Series({i: row["energy"] for i, row in found.items()}, dtype="float64"),
        "relaxation_failure": pd.Series(failures, dtype="str"),
    }


def energy_columns(
    table: pd.DataFrame,
    samples: Sequence[Sample],
    hull: Hull | None,
    known: KnownMaterials | None = None,
    *,
    model_hull: Hull | None = None,
    corrected: bool,
    progress: bool = False,
) -> pd.DataFrame:
    """Returns `ENERGY_COLUMNS` of the samples that relaxed.

    Args:
        table: the columns `relaxed_cif` and `relaxed_energy`.
        samples: the samples.
        hull: the known materials with energies.
        known: a list of known materials, which decides whether the hull is complete.
        model_hull: the potential's own hull beside another one, for `e_above_model_hull`.
        corrected: whether the energies contain the MP2020 corrections already.
        progress: whether to show a progress bar.
    """
    relaxed = table[table["relaxed_energy"].notna()]
    rows = {
        i: _energy_facts(samples[i], cif, energy, hull, known, model_hull=model_hull, corrected=corrected)
        for i, cif, energy in tqdm(
            list(zip(relaxed.index, relaxed["relaxed_cif"], relaxed["relaxed_energy"], strict=True)),
            "energies above the hull",
            unit="crystal",
            disable=not progress,
        )
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=None).reindex(columns=list(ENERGY_COLUMNS))


def _energy_facts(
    sample: Sample,
    cif: str,
    energy: float,
    hull: Hull | None,
    known: KnownMaterials | None,
    *,
    model_hull: Hull | None,
    corrected: bool,
) -> dict[str, Any]:
    """Returns the columns of one relaxed crystal; without corrections or a hull that cover it, some are missing."""
    structure = parse(Entry(sample.name, cif)).structure
    if structure is None or sample.structure is None:
        return {"hull_failure": "the relaxed crystal cannot be read"}
    facts = _relaxed_facts(sample, structure)
    if known is not None:
        formula = reduced(structure.composition.get_el_amt_dict())
        facts |= {"known_crystal": known.has_crystal(formula, facts["relaxed_spacegroup"])}
    try:
        per_atom = energy_per_atom(structure, energy, is_corrected=corrected)
        facts |= {"energy_per_atom": per_atom}
        if hull is not None:
            facts |= _height_facts(structure, per_atom, hull, known)
        if model_hull is not None:
            facts |= {"e_above_model_hull": model_hull.height(structure.composition, per_atom).above}
    except ValueError as reason:
        facts |= {"hull_failure": f"no energy above the hull: {reason}"}
    return facts


def _relaxed_facts(sample: Sample, structure: Structure) -> dict[str, Any]:
    """Returns the columns of a relaxed crystal that need no energy."""
    return {
        "relaxation_rmsd": _moved(sample, structure.frac_coords, structure.lattice.matrix),
        "relaxed_spacegroup": spacegroup(structure),
        "relaxed_density": float(structure.density),
        "relaxed_volume": structure.volume,
        "relaxed_plausible": structural_invalid_reason(structure) is None and implausible_reason(structure) is None,
    }


def _height_facts(structure: Structure, energy: float, hull: Hull, known: KnownMaterials | None) -> dict[str, Any]:
    """Returns the columns that depend on the hull, for a crystal of this energy (eV/atom).

    Raises:
        ValueError: the hull does not cover the crystal.
    """
    height = hull.height(structure.composition, energy)
    return {
        "e_above_hull": height.above,
        "formation_energy_per_atom": height.formation_energy,
        "known_in_system": height.known_in_system,
        "decomposes_to": " + ".join(f"{share:.3g} {formula}" for formula, share in height.decomposition),
        **completeness(structure.composition.get_el_amt_dict(), hull, known),
    }


def completeness(counts: Mapping[str, float], hull: Hull, known: KnownMaterials | None) -> dict[str, Any]:
    """Decides whether the hull contains the competing phases of a composition; if not, `lower_bound` is True.

    With a list of known materials, the hull is complete if it has at least 90 % of the stable compounds of the
    elements. Without a list, it is complete if it has at least two materials with exactly these elements. For a single
    element it is always complete.

    Args:
        counts: atoms by element.
        hull: the known materials with energies.
        known: a list of known materials.
    """
    if len(counts) == 1:
        return {"lower_bound": False}
    if known is None:
        return {"lower_bound": hull.num_in_system(counts) < MIN_PHASES}
    stable = known.stable_in(counts)
    missing = sum(not hull.has(dict(formula)) for formula in stable)
    # A system without any known stable compound may have unknown ones.
    enough = bool(stable) and len(stable) - missing >= MIN_COMPLETENESS * len(stable)
    return {"stable_in_system": len(stable), "stable_missing": missing, "lower_bound": not enough}


def _moved(sample: Sample, after: np.ndarray, lattice: np.ndarray) -> float:
    """Returns the root mean square move of the atoms in the relaxed cell in Å, without their common drift."""
    assert sample.structure is not None
    moves = after - sample.structure.frac_coords
    moves -= np.round(moves)
    moves -= moves.mean(axis=0)
    return float(np.sqrt(((moves @ lattice) ** 2).sum(axis=1).mean()))


def metrics_of(rows: pd.DataFrame, scored: pd.DataFrame, *, has_hull: bool, paper_mode: bool) -> dict[str, Any]:
    """Returns rates of the scored rows: relaxed, stable, and those that are also unique and new.

    The rates `*_complete_hull` count only crystals whose energy above the hull is not a lower bound.
    """
    valid = scored[scored["valid"]]
    tried = valid[valid["relaxation_status"].notna()]
    found: dict[str, Any] = {
        "relaxed": Rate.of(tried["energy_per_atom"].notna()).as_dict(),
        "relaxation_status_counts": dict(Counter(tried["relaxation_status"]).most_common()),
    }
    if not has_hull:
        return found
    of = scored[scored["e_above_hull"].notna()] if paper_mode else scored
    height = of["e_above_hull"]
    metastable, stable = height < METASTABLE, height < STABLE
    found |= {"metastable": Rate.of(metastable).as_dict(), "stable": Rate.of(stable).as_dict()}
    complete = ~of["lower_bound"].fillna(False).astype(bool)
    found["metastable_complete_hull"] = Rate.of(metastable & complete).as_dict()
    found["stable_complete_hull"] = Rate.of(stable & complete).as_dict()
    if (own := of["e_above_model_hull"]).notna().any():
        found["metastable_model_hull"] = Rate.of(own < METASTABLE).as_dict()
        found["stable_model_hull"] = Rate.of(own < STABLE).as_dict()
    found["metastable_of_valid"] = Rate(int(metastable.sum()), len(valid)).as_dict()
    if rows["novel"].notna().any():
        new = of["unique"].fillna(False) & of["novel"].fillna(False)
        found |= {"sun": Rate.of(stable & new).as_dict(), "msun": Rate.of(metastable & new).as_dict()}
    found["hull_coverage"] = hull_coverage(valid[valid["e_above_hull"].notna()])
    return found


def hull_coverage(rows: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Counts the chemical systems of the rows, and those with known materials in the hull, by number of elements.

    In a system without known materials, the energy above the hull tends to be too low.
    """
    systems: dict[int, dict[frozenset[str], bool]] = defaultdict(dict)
    for formula, known in zip(rows["reduced_formula"], rows["known_in_system"], strict=True):
        elements = frozenset(Entry("", "", formula=str(formula)).stated_composition() or ())
        systems[len(elements)][frozenset(map(str, elements))] = len(elements) == 1 or bool(known)
    return {
        str(size): {"systems": len(some), "with_known_materials": sum(some.values())}
        for size, some in sorted(systems.items())
    }


def _described(hull: Hull) -> dict[str, Any]:
    energies = hull.energy_model or "DFT, MP2020-corrected"
    return {"source": hull.source, "materials": hull.size, "energies": energies}


def settings_of(job: RelaxJob, hull: Hull | None, *, corrected: bool) -> dict[str, Any]:
    """Returns the settings of the energies, for `metrics.json`."""
    return {
        "model": job.model,
        **dataclasses.asdict(job.settings),
        "corrections": "the model's own" if corrected else SCHEME,
        "metastable_below": METASTABLE,
        "stable_below": STABLE,
        "hull": hull and _described(hull),
        "min_completeness": MIN_COMPLETENESS,
        "min_phases": MIN_PHASES,
    }
