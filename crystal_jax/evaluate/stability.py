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

from crystal_jax.energy.corrections import SCHEME, corrected_energy
from crystal_jax.energy.hull import METASTABLE, STABLE, Hull
from crystal_jax.energy.runner import RelaxJob, key_of, relax_all
from crystal_jax.evaluate.known_materials import KnownMaterials
from crystal_jax.evaluate.rate import Rate
from crystal_jax.evaluate.symmetry import spacegroup
from crystal_jax.evaluate.validity import implausible_reason, structural_invalid_reason
from crystal_jax.structures import Entry, Sample, parse

MIN_COMPLETENESS = 0.9  # share of the known stable compounds of a sample's elements that a complete hull contains
MIN_PHASES = 2  # materials with exactly these elements that a complete hull contains, without a list of known materials


@dataclasses.dataclass(frozen=True)
class Energies:
    """Results of relaxation: rows of the log by key, and the job that computed them."""

    rows: Mapping[str, Mapping[str, Any]]
    job: RelaxJob
    corrected: bool  # whether the model's energies contain the MP2020 corrections

    def of(self, sample: Sample) -> Mapping[str, Any] | None:
        """Returns the row of a sample; None if it was not relaxed."""
        return self.rows.get(key_of(sample.cif))


def relax_valid(
    samples: Sequence[Sample],
    rows: pd.DataFrame,
    job: RelaxJob,
    folder: Path,
    *,
    mode: str,
    workers: int | None = None,
    ray_address: str | None = None,
    progress: bool = False,
) -> Energies:
    """Relaxes the valid samples; in the mode "paper" only those of more than one atom.

    Raises:
        UserError: see `relax_all`.
    """
    chosen = rows["valid"] & ((rows["num_atoms"] > 1) if mode == "paper" else True)
    cifs = [sample.cif for sample, wanted in zip(samples, chosen, strict=True) if wanted]
    found = relax_all(cifs, job, folder, workers=workers, ray_address=ray_address, progress=progress)
    return Energies(found, job, corrected=job.model == "chgnet")


def fill_in(
    rows: pd.DataFrame,
    samples: Sequence[Sample],
    energies: Energies,
    hull: Hull | None,
    known: KnownMaterials | None = None,
    *,
    progress: bool = False,
) -> None:
    """Writes the results of relaxation into the columns of `rows`; reasons of failures go to `failure_reason`.

    Args:
        rows: one row per sample.
        samples: the samples.
        energies: results of relaxation.
        hull: the known materials with energies.
        known: a list of known materials, which decides whether the hull is complete.
        progress: whether to show a progress bar.
    """
    relaxed = [(i, row) for i, sample in enumerate(samples) if (row := energies.of(sample)) and rows.loc[i, "valid"]]
    for i, row in tqdm(relaxed, "energies above the hull", unit="crystal", disable=not progress):
        rows.loc[i, "relaxation_status"] = row["status"]
        rows.loc[i, "relaxation_steps"] = row["steps"]
        if row["energy"] is None:
            rows.loc[i, "failure_reason"] = f"relaxation {row['status']}: {row['reason']}"
            continue
        structure = parse(Entry(samples[i].name, row["relaxed_cif"])).structure
        if structure is None or samples[i].structure is None:
            rows.loc[i, "failure_reason"] = "the relaxed crystal cannot be read"
            continue
        # These columns are filled in even if the corrections or the hull do not cover the crystal.
        _write(rows, i, _relaxed_facts(samples[i], structure))
        try:
            energy = row["energy"] if energies.corrected else corrected_energy(structure, row["energy"])
            _write(rows, i, {"energy_per_atom": energy / len(structure)})
            if hull is not None:
                _write(rows, i, _height_facts(structure, energy / len(structure), hull, known))
        except ValueError as reason:
            rows.loc[i, "failure_reason"] = f"no energy above the hull: {reason}"


def _write(rows: pd.DataFrame, i: Any, facts: Mapping[str, Any]) -> None:
    for name, value in facts.items():
        rows.loc[i, name] = value


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


def metrics_of(rows: pd.DataFrame, judged: pd.DataFrame, hull: Hull | None, *, mode: str) -> dict[str, Any]:
    """Returns rates of the scored rows: relaxed, stable, and those that are also unique and new.

    The rates `*_complete_hull` count only crystals whose energy above the hull is not a lower bound.
    """
    valid = judged[judged["valid"]]
    tried = valid[valid["relaxation_status"].notna()]
    found: dict[str, Any] = {
        "relaxed": Rate.of(tried["energy_per_atom"].notna()).as_dict(),
        "relaxation_status_counts": dict(Counter(tried["relaxation_status"]).most_common()),
    }
    if hull is None:
        return found
    of = judged[judged["e_above_hull"].notna()] if mode == "paper" else judged
    height = of["e_above_hull"]
    metastable, stable = height < METASTABLE, height < STABLE
    found |= {"metastable": Rate.of(metastable).as_dict(), "stable": Rate.of(stable).as_dict()}
    complete = ~of["lower_bound"].fillna(False).astype(bool)
    found["metastable_complete_hull"] = Rate.of(metastable & complete).as_dict()
    found["stable_complete_hull"] = Rate.of(stable & complete).as_dict()
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


def settings_of(energies: Energies, hull: Hull | None) -> dict[str, Any]:
    """Returns the settings of the energies, for `metrics.json`."""
    return {
        "model": energies.job.model,
        **dataclasses.asdict(energies.job.settings),
        "corrections": "the model's own" if energies.corrected else SCHEME,
        "metastable_below": METASTABLE,
        "stable_below": STABLE,
        "hull": hull and {"source": hull.source, "materials": hull.size},
        "min_completeness": MIN_COMPLETENESS,
        "min_phases": MIN_PHASES,
    }
