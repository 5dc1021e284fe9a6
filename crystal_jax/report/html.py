"""Renders an evaluation as one HTML file that needs neither network nor other files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from pymatgen.util.string import unicodeify

from crystal_jax.energy.convex_hull.choose import choose_hull
from crystal_jax.energy.convex_hull.hull import Hull
from crystal_jax.energy.settings import METASTABLE
from crystal_jax.errors import UserError
from crystal_jax.evaluate.candidates import candidates, missing_for_a_rank
from crystal_jax.evaluate.evaluation import METRICS, Evaluation, read_evaluation
from crystal_jax.report import elements, figures, gallery
from crystal_jax.report.groups import symbol
from crystal_jax.report.published import PUBLISHED
from crystal_jax.storage.files import write_text
from crystal_jax.suppress_warnings import quiet

SETTING_TITLES = {
    "oxidation_states": "Oxidation states",
    "paper_draw_seed": "Seed of the draw",
    "electronegativity_zr": "χ of zirconium",
    "min_distance_angstrom": "Least distance (Å)",
    "min_volume_cubic_angstrom": "Least volume (Å³)",
    "matcher": "StructureMatcher",
    "spacegroup_symprec_angstrom": "Symmetry precision (Å)",
    "min_radius_factor": "Plausible distance, of the sum of covalent radii",
    "max_volume_factor": "Plausible volume, of the van der Waals spheres",
}
RATE_TITLES = {
    "structural_validity": ("Structure valid", "no two atoms closer than 0.5 Å, cell of at least 0.1 Å³"),
    "compositional_validity": ("Composition valid", "charges can balance (SMACT), or an alloy"),
    "validity": ("Valid", "both of these"),
    "plausibility": ("Plausible", "valid, distances as the radii ask for, no cell mostly empty"),
    "uniqueness": ("Unique", "of the valid: repeats no earlier sample"),
    "novelty": ("Novel", "of the valid: not in the training set"),
}
# Shown if measured.
MORE_RATE_TITLES = {
    "coverage_recall": ("Recall", "real crystals near a sample, by fingerprints"),
    "coverage_precision": ("Precision", "samples near a real crystal, by fingerprints"),
    "metastable": ("Metastable", "relaxed, below 0.1 eV/atom above the hull"),
    "stable": ("On the hull", "relaxed, below 0 eV/atom, by the energy model"),
    "stable_complete_hull": ("On a complete hull", "the same, where the hull has the competing phases"),
    "metastable_model_hull": ("Metastable, own hull", "the same above the hull of the potential's own energies"),
    "stable_dft": ("Stable by DFT", "below 0 eV/atom, by density-functional theory"),
    "msun": ("MetaS.U.N.", "metastable, unique and novel"),
    "formula_match": ("Formula as asked", "of the samples that were asked for one"),
    "spacegroup_match": ("Space group as asked", "at 0.2 Å, of the samples that were asked for one"),
    "e_above_hull_match": ("Stability as asked", "on the side of 0.1 eV/atom that was asked for"),
    "chemical_system_match": ("Chemical system as asked", "all of the elements, and no others"),
    "match_rate": ("Predicted", "known structures that a sample matches"),
}
SAMPLING_TITLES = {
    "checkpoint": "checkpoint",
    "step": "training step",
    "prompt": "prompt",
    "requests": "number of requests",
    "hints": "hints",
    "limits": "limits",
    "constraints": "constraints",
    "min_radius_factor": "least distance, of the sum of radii",
    "temperature": "temperature",
    "top_p": "nucleus",
    "max_retries": "max_retries",
    "reward": "reward of the search",
    "budget": "model calls",
    "exploration": "exploration",
    "oxidation_states": "oxidation states",
    "min_distance": "least distance (Å)",
    "seed": "seed",
    "text_format": "text format",
}
ENERGY_TITLES = {
    "model": "model",
    "fmax": "largest force at the end (eV/Å)",
    "max_steps": "most steps",
    "timeout": "time-out (s)",
    "corrections": "corrections",
    "hull": "hull",
    "min_completeness": "a complete hull has this share of the known stable phases",
}
CANDIDATES_SHOWN = 20
HULL_EDGES = np.linspace(-0.2, 1.0, 31)  # eV/atom, bins of the histogram of energies above the hull


@quiet()
def write_report(
    evaluation: Path,
    *,
    output: Path | None = None,
    training_log: Path | None = None,
    beside: Mapping[str, Path] | None = None,
) -> Path:
    """Writes the report of an evaluation and returns its path; arguments and errors are those of `report/run.py`."""
    evaluation = Path(evaluation).expanduser()
    data = read_evaluation(evaluation)
    others = [(name, dict(read_evaluation(Path(folder)).metrics)) for name, folder in (beside or {}).items()]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("crystal_jax.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    training = _training(training_log) if training_log else None
    try:
        figures_ = _figures(data, evaluation)
        page = environment.get_template("report.html").render(**figures_, training=training, beside=others)
    except (LookupError, ArithmeticError, TypeError, ValueError, AttributeError, jinja2.TemplateError) as error:
        raise UserError(
            f"{evaluation / METRICS} is damaged or of another version ({error!r:.200}); "
            "run 'crystal-jax evaluate' again"
        ) from error
    path = Path(output) if output else evaluation / "report.html"
    write_text(path, page)
    return path


def _figures(data: Evaluation, folder: Path) -> dict[str, Any]:
    metrics, rows = dict(data.metrics), data.table
    valid = rows[rows["valid"]]
    histograms = [figures.histogram(h) for h in metrics["histograms"].values()] if len(valid) else []
    return {
        "metrics": metrics,
        "rates": [(*titles, metrics[name]) for name, titles in RATE_TITLES.items()]
        + [(*titles, metrics[name]) for name, titles in MORE_RATE_TITLES.items() if metrics.get(name)],
        "funnel": _funnel(rows),
        "settings": [(title, metrics["settings"][name]) for name, title in SETTING_TITLES.items()],
        "published": PUBLISHED,
        "histograms": histograms,
        "spacegroups": figures.shares(metrics["spacegroups"]) if metrics["spacegroups"]["numbers"] else None,
        "stability": _stability(rows),
        "candidates": _candidates(rows),
        "number_of_candidates": len(candidates(rows)),
        "missing_for_a_rank": missing_for_a_rank(metrics),
        "has_energies": bool(rows["energy_per_atom"].notna().any()),
        "has_oxidation_states": bool(rows["oxidation_states"].notna().any()),
        "is_new_known": bool(rows["novel"].notna().any() or rows["known_formula"].notna().any()),
        "nearest_of": _nearest_of(metrics) if rows["nearest_known"].notna().any() else None,
        "made": _made(metrics),
        "tiles": elements.heat_map(valid["formula"]),
        "failures": metrics["failures"],
        "cards": gallery.gallery(rows, Path(metrics["samples"]["path"]), folder / "relaxations", _hull(metrics)),
    }


def _hull(metrics: Mapping[str, Any]) -> Hull | None:
    """Returns the hull of the evaluation; None if it has none, or its file is no longer there or another one."""
    settings = metrics["settings"].get("energies") or {}
    described = settings.get("hull") or {}
    try:
        hull = (
            choose_hull(settings["model"], described.get("path"), described.get("elements_path")) if described else None
        )
    except UserError:
        return None
    return hull if hull is not None and hull.source == described["source"] else None


def _stability(rows: pd.DataFrame) -> dict[str, Any] | None:
    """Returns the histogram of energies above the hull; None if there are none."""
    heights = rows["e_above_hull"].dropna()
    if heights.empty:
        return None
    inside = (HULL_EDGES[0] + 1e-9, HULL_EDGES[-1] - 1e-9)
    counts = np.histogram(heights.clip(*inside), HULL_EDGES)[0].tolist()
    data = {
        "label": "Energy above the hull",
        "unit": "eV/atom",
        "edges": HULL_EDGES.tolist(),
        "samples": counts,
        "reference": [0] * len(counts),
    }
    return {"figure": figures.histogram(data), "known": len(heights)}


def _candidates(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Returns the first candidates, formatted."""

    def text(value: Any, form: str = "{}") -> str:
        return "–" if pd.isna(value) else form.format(value)

    printed = []
    for row in candidates(rows).head(CANDIDATES_SHOWN).to_dict("records"):
        bound = "≥ " if row["lower_bound"] is True else ""
        phases = text(row["known_in_system"])
        if not pd.isna(row["stable_in_system"]):
            stable = int(row["stable_in_system"])
            phases += f"; {stable - int(row['stable_missing'])} of {stable} stable"
        printed.append(
            {
                "rank": text(row["rank"]),
                "formula": unicodeify(row["reduced_formula"]),
                "spacegroup": "–"
                if pd.isna(row["spacegroup"])
                else f"{symbol(int(row['spacegroup']))} ({row['spacegroup']})",
                "num_atoms": row["num_atoms"],
                "e_above_hull": text(round(row["e_above_hull"], 3) + 0.0, bound + "{:.3f}"),  # no negative zero
                "phases": phases,
                "energy_per_atom": text(row["energy_per_atom"], "{:.3f}"),
                "decomposes_to": text(row["decomposes_to"]),
                "new": _newness(row["known_crystal"], row["known_formula"], row["new"]),
                "plausible": _yes_or_no(row["plausible"]),
                "oxidation_states": text(row["oxidation_states"]),
                "density": text(row["density"], "{:.2f}"),
                "nearest_known": text(row["nearest_known"]),
                "name": row["name"],
            }
        )
    return printed


def _newness(known_crystal: object, known_formula: object, new: Any) -> str:
    if known_crystal is True:
        return "known"
    return "known formula" if known_formula is True else _yes_or_no(new)


def _yes_or_no(value: Any) -> str:
    return "–" if pd.isna(value) else "yes" if value else "no"


def _nearest_of(metrics: Mapping[str, Any]) -> str:
    """Returns a description of the set that nearest crystals are from."""
    source = metrics["train_reference"] if metrics["settings"]["novelty_cutoffs"] else metrics["reference"]
    return f"{source['read']:,} crystals of {source['path']}"


def _made(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns the settings behind the samples and their energies: command lines, seeds, limits, thresholds."""
    found = [("Command", metrics["command"])] if metrics.get("command") else []
    sampling = metrics.get("sampling") or {}
    request = dict(sampling.get("request", {}))
    if request.get("requests", 1) != 1:
        request.pop("prompt", None)  # a digest of many prompts
    if made_by := sampling.get("provenance", {}).get("command"):
        found.append(("Sampling: command", made_by))
    for name, title in SAMPLING_TITLES.items():
        value = request.get(name)
        if value not in (None, "", [], {}):
            found.append((f"Sampling: {title}", _plain(value)))
    energies = metrics["settings"].get("energies") or {}
    for name, title in ENERGY_TITLES.items():
        if energies.get(name) is not None:
            found.append((f"Energies: {title}", _plain(energies[name])))
    if metrics.get("known_materials"):
        found.append(("Known formulas", metrics["known_materials"]))
    return found


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(item)}" for name, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _funnel(rows: pd.DataFrame) -> list[tuple[str, int]]:
    """Returns how many samples are left after each check."""
    unique = rows["valid"] & rows["unique"].fillna(False)
    steps = [
        ("sampled", len(rows)),
        ("form a crystal", int(rows["density"].notna().sum())),
        ("valid", int(rows["valid"].sum())),
        ("and unique", int(unique.sum())),
    ]
    left = unique
    if rows["novel"].notna().any():
        left = left & rows["novel"].fillna(False)
        steps.append(("and novel", int(left.sum())))
    if rows["e_above_hull"].notna().any():
        steps.append(("and metastable", int((left & (rows["e_above_hull"] < METASTABLE)).sum())))
    return steps


def _training(path: Path) -> dict[str, Any]:
    """Reads the training curve and its last figures from JSON lines."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the training log {path}: {error}") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line) if line.strip() else None
            if row:
                step = {"step": float(row["step"])}
                rows.append({name: x for name, x in row.items() if isinstance(x, int | float)} | step)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{path}, line {number}: not a JSON object with a number 'step'") from None
    series = {name: _series(rows, name) for name in ("loss", "val_loss")}
    speeds = [speed for _, speed in _series(rows, "tokens_per_second")]
    if not any(series.values()):
        raise UserError(f"{path}: the training log holds no finite 'loss' or 'val_loss'")
    return {
        "curve": figures.training_curve(series),
        "last": {name: line[-1] for name, line in series.items() if line},
        "tokens_per_second": sorted(speeds)[len(speeds) // 2] if speeds else None,
    }


def _series(rows: list[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    return [(row["step"], row[name]) for row in rows if math.isfinite(row.get(name, math.nan))]
