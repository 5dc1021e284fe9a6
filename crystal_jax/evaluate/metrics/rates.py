"""Computes the numbers of `metrics.json` from a table with one row per sample (`structures`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pandas as pd

from crystal_jax.evaluate.metrics.distributions import PROPERTIES, histogram, wasserstein
from crystal_jax.evaluate.metrics.rate import Rate

PAPER_NUM_SAMPLES = 10_000  # number of samples behind the published figures
PAPER_DRAW_SEED = 0  # the reference implementation uses no seed
RATES = (
    "structural_validity",
    "compositional_validity",
    "validity",
    "plausibility",
    "no_symmetry",
    "uniqueness",
    "novelty",
    "uniqueness_loose",
    "novelty_loose",
    "coverage_recall",
    "coverage_precision",
    "structure_novelty",
    "composition_novelty",
    "fingerprint_novelty",
    "relaxed",
    "metastable",
    "stable",
    "metastable_complete_hull",
    "stable_complete_hull",
    "metastable_model_hull",
    "stable_model_hull",
    "sun",
    "msun",
    "formula_match",
    "spacegroup_match",
    "e_above_hull_match",
    "chemical_system_match",
    "match_rate",
    "infill_accuracy",
)


def scored_rows(rows: pd.DataFrame, mode: str) -> pd.DataFrame:
    """Returns the rows that enter validity and distributions.

    By default these are all rows. In the mode "paper" samples without a structure are left out, and more than 10,000
    rows are replaced by 10,000 drawn with replacement (crystal-text-llm, `basic_eval.py`).
    """
    if mode != "paper":
        return rows
    rows = rows[rows["density"].notna()]
    if len(rows) <= PAPER_NUM_SAMPLES:
        return rows
    return rows.sample(PAPER_NUM_SAMPLES, replace=True, random_state=PAPER_DRAW_SEED)


def rates(rows: pd.DataFrame, judged: pd.DataFrame, *, with_novelty: bool) -> dict[str, dict[str, Any] | None]:
    """Returns validity of the scored rows, and symmetry, uniqueness and novelty of all valid rows; None if not
    measured.
    """
    valid = rows[rows["valid"]]
    found = {
        "structural_validity": Rate.of(judged["structurally_valid"]),
        "compositional_validity": Rate.of(judged["compositionally_valid"]),
        "validity": Rate.of(judged["valid"]),
        "plausibility": Rate.of(judged["plausible"]),
        "no_symmetry": Rate.of(valid["spacegroup"].fillna(1) == 1),
        "uniqueness": Rate.of(valid["unique"]),
        "novelty": Rate.of(valid["novel"]) if with_novelty else None,
        "uniqueness_loose": Rate.of(valid["unique_loose"]),
        "novelty_loose": Rate.of(valid["novel_loose"]) if with_novelty else None,
    }
    return {name: None if rate is None else rate.as_dict() for name, rate in found.items()}


def distances(judged: pd.DataFrame, reference: pd.DataFrame) -> dict[str, Any]:
    """Compares the valid scored rows with all reference crystals; histograms show the same sets.

    Args:
        judged: the scored rows.
        reference: columns `density` (g/cm^3), `num_elements` and `num_atoms`.
    """
    valid = judged[judged["valid"]]
    return {
        "wasserstein_density": wasserstein(valid["density"], reference["density"], "g/cm^3"),
        "wasserstein_num_elements": wasserstein(valid["num_elements"], reference["num_elements"], "elements"),
        "histograms": {kind.column: histogram(valid[kind.column], reference[kind.column], kind) for kind in PROPERTIES},
    }


def failures(rows: pd.DataFrame) -> dict[str, int]:
    """Counts failure reasons up to their colon, in decreasing order; a sample may fail for two reasons."""
    reasons = (reason.split(":")[0] for text in rows["failure_reason"].dropna() if text for reason in text.split("; "))
    return dict(Counter(reasons).most_common())


def summary(metrics: Mapping[str, Any]) -> str:
    """Formats a small table for the terminal."""
    lines = []
    for name in RATES:
        if name not in metrics:
            continue
        rate = metrics[name]
        if rate is None and name.endswith("_loose"):
            continue
        if rate is None:
            text = "not measured"
        elif rate["value"] is None:
            text = "nothing to judge"
        else:
            text = f"{100 * rate['value']:6.2f} %   {rate['hits']} of {rate['total']}"
        lines.append(f"{name:<26}{text}")
    for name in ("wasserstein_density", "wasserstein_num_elements"):
        distance = metrics.get(name)
        if distance and distance["value"] is not None:
            sizes = f"{distance['samples']} samples, {distance['reference']} real"
            lines.append(f"{name:<26}{distance['value']:8.4f} {distance['unit']}   {sizes}")
    for name in ("amsd_recall", "amsd_precision", "amcd_recall", "amcd_precision"):
        distance = metrics.get(name)
        if distance and distance["value"] is not None:
            lines.append(f"{name:<26}{distance['value']:8.4f}   {distance['crystals']} crystals")
    return "\n".join(lines)
