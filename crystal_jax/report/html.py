"""Renders an evaluation as one HTML file that needs neither network nor other files."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from pymatgen.util.string import unicodeify

from crystal_jax.errors import UserError
from crystal_jax.evaluate import structures
from crystal_jax.evaluate.candidates import candidates
from crystal_jax.files import write_text
from crystal_jax.quiet import quiet
from crystal_jax.report import elements, figures, gallery
from crystal_jax.report.groups import symbol
from crystal_jax.report.published import PUBLISHED

SETTING_TITLES = {
    "oxidation_states": "Oxidation states",
    "paper_draw_seed": "Seed of the draw",
    "electronegativity_zr": "χ of zirconium",
    "min_distance_angstrom": "Least distance (Å)",
    "min_volume_cubic_angstrom": "Least volume (Å³)",
    "matcher": "StructureMatcher",
    "spacegroup_symprec_angstrom": "Symmetry precision (Å)",
}
RATE_TITLES = {
    "structural_validity": ("Structure valid", "no two atoms closer than 0.5 Å, cell of at least 0.1 Å³"),
    "compositional_validity": ("Composition valid", "charges can balance (SMACT), or an alloy"),
    "validity": ("Valid", "both of these"),
    "uniqueness": ("Unique", "of the valid: repeats no earlier sample"),
    "novelty": ("Novel", "of the valid: not in the training set"),
}
# Shown if they were measured.
MORE_RATE_TITLES = {
    "coverage_recall": ("Recall", "real crystals near a sample, by fingerprints"),
    "coverage_precision": ("Precision", "samples near a real crystal, by fingerprints"),
    "metastable": ("Metastable", "relaxed, below 0.1 eV/atom above the hull"),
    "stable": ("On the hull", "relaxed, below 0 eV/atom, by the energy model"),
    "stable_dft": ("Stable by DFT", "below 0 eV/atom, by density-functional theory"),
    "meta_sun": ("MetaS.U.N.", "metastable, unique and novel"),
    "formula_match": ("Formula as asked", "of the samples that were asked for one"),
    "spacegroup_match": ("Space group as asked", "at 0.2 Å, of the samples that were asked for one"),
    "e_above_hull_match": ("Stability as asked", "on the side of 0.1 eV/atom that was asked for"),
    "match_rate": ("Predicted", "known structures that a sample matches"),
}
CANDIDATES_SHOWN = 20
HULL_EDGES = np.linspace(-0.2, 1.0, 31)  # eV/atom, bins of the histogram of energies above the hull


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What `crystal-jax evaluate` wrote: `metrics.json` and `structures.csv`."""

    metrics: dict[str, Any]
    rows: pd.DataFrame

    @classmethod
    def read(cls, directory: Path) -> Evaluation:
        """Reads the folder of an evaluation.

        Raises:
            UserError: a file is missing or is not what an evaluation writes.
        """
        try:
            metrics = json.loads((directory / "metrics.json").read_text(encoding="utf-8"))
            rows = pd.read_csv(directory / "structures.csv", dtype=structures.COLUMNS)
            (
                rows["valid"],
                metrics["validity"]["hits"],
                metrics["spacegroups"]["numbers"],
            )  # a KeyError if these are other files of the same names
        except FileNotFoundError as error:
            missing = Path(error.filename).name
            raise UserError(f"{directory}: no {missing}; is this the --output of 'crystal-jax evaluate'?") from None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{directory}: not an evaluation that can be read ({error!r}); run it again") from error
        return cls(metrics, rows)


@quiet()
def write_report(
    evaluation: Path,
    *,
    output: Path | None = None,
    training_log: Path | None = None,
    beside: Mapping[str, Path] | None = None,
) -> Path:
    """Writes the report of an evaluation.

    Args:
        evaluation: folder with `metrics.json` and `structures.csv`.
        output: the HTML file; by default `report.html` in that folder.
        training_log: JSON lines with `step` and any of `loss`, `val_loss` and `tokens_per_second`.
        beside: folders of other evaluations, by the names of their rows in the table of comparisons.

    Returns:
        The path of the file written.

    Raises:
        UserError: an input is missing or malformed, or the output cannot be written.
    """
    evaluation = Path(evaluation)
    data = Evaluation.read(evaluation)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("crystal_jax.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html").render(
        **_figures(data),
        training=_training(training_log) if training_log else None,
        beside=[(name, Evaluation.read(Path(folder)).metrics) for name, folder in (beside or {}).items()],
    )
    path = Path(output) if output else evaluation / "report.html"
    write_text(path, page)
    return path


def _figures(data: Evaluation) -> dict[str, Any]:
    metrics, rows = data.metrics, data.rows
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
        "tiles": elements.heat_map(valid["formula"]),
        "failures": metrics["failures"],
        "cards": gallery.gallery(rows, Path(metrics["samples"]["path"])),
    }


def _stability(rows: pd.DataFrame) -> dict[str, Any] | None:
    """The histogram of energies above the hull; None if there are none."""
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
    """The first candidates, as they are printed."""

    def text(value: Any, form: str = "{}") -> str:
        return "–" if pd.isna(value) else form.format(value)

    return [
        {
            "formula": unicodeify(row["reduced_formula"]),
            "spacegroup": "–"
            if pd.isna(row["spacegroup"])
            else f"{symbol(int(row['spacegroup']))} ({row['spacegroup']})",
            "num_atoms": row["num_atoms"],
            "e_above_hull": text(row["e_above_hull"], "{:.3f}"),
            "decomposes_to": text(row["decomposes_to"]),
            "nearest_known": text(row["nearest_known"]),
            "name": row["name"],
        }
        for row in candidates(rows).head(CANDIDATES_SHOWN).to_dict("records")
    ]


def _funnel(rows: pd.DataFrame) -> list[tuple[str, int]]:
    """How many samples are left after each check."""
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
        steps.append(("and metastable", int((left & (rows["e_above_hull"] < 0.1)).sum())))
    return steps


def _training(path: Path) -> dict[str, Any]:
    """The training curve and its last figures, from JSON lines."""
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
