"""Columns and metrics that use fingerprints: coverage, diversity, and the paper's novelty."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from crystal_jax.evaluate.cutoffs import NOVELTY, Cutoffs
from crystal_jax.evaluate.fingerprints import coordination, magpie
from crystal_jax.evaluate.fingerprints.coverage import coverage, diversity, nearest
from crystal_jax.evaluate.fingerprints.fingerprints import Fingerprints
from crystal_jax.evaluate.metrics.rate import Rate
from crystal_jax.structures import Sample


def considered(samples: Sequence[Sample], chosen: pd.Series) -> list[Sample]:
    """Returns the samples, those that are not chosen without their structure, so that they get no fingerprint."""
    return [s if keep else _without_structure(s) for s, keep in zip(samples, chosen, strict=True)]


def _without_structure(sample: Sample) -> Sample:
    return dataclasses.replace(sample, structure=None, failure=sample.failure or "not valid")


def fingerprint_columns(found: Fingerprints) -> dict[str, pd.Series]:
    """Returns the columns `structure_fingerprint`, `composition_fingerprint` and `fingerprint_failure`."""
    return {
        "structure_fingerprint": pd.Series(list(found.structure), found.places, dtype=object),
        "composition_fingerprint": pd.Series(list(found.composition), found.places, dtype=object),
        "fingerprint_failure": pd.Series(found.failures, dtype="str"),
    }


def fingerprints_in(table: pd.DataFrame) -> Fingerprints:
    """Returns the fingerprints in the table: the inverse of `fingerprint_columns`."""
    chosen = table[table["structure_fingerprint"].notna()]
    failed = table["fingerprint_failure"].dropna()
    return Fingerprints(
        structure=np.array(list(chosen["structure_fingerprint"])).reshape(-1, coordination.LENGTH),
        composition=np.array(list(chosen["composition_fingerprint"])).reshape(-1, magpie.LENGTH),
        places=chosen.index.to_numpy(int),
        failures=dict(zip(failed.index.tolist(), failed.tolist(), strict=True)),
    )


def nearest_columns(
    table: pd.DataFrame,
    real: Fingerprints,
    known: Fingerprints,
    names: Sequence[str],
    *,
    cutoffs: Cutoffs,
    paper_mode: bool,
) -> dict[str, pd.Series]:
    """Returns `covered`, `structure_distance`, `composition_distance` and `nearest_known`.

    By default, as in CDVAE, all samples with a structure are covered or not. In the mode "paper" only valid ones are.
    A sample without a fingerprint is not covered.

    Args:
        table: the fingerprints, and the columns `valid` and `density`.
        real: fingerprints of the reference.
        known: fingerprints of the training set; without them, those of the reference.
        names: names of the crystals behind `known`.
        cutoffs: cut-offs of coverage.
        paper_mode: whether rates are counted as published.
    """
    own = fingerprints_in(table)
    near = nearest(own, real)
    judged = table["valid"] if paper_mode else table["density"].notna()
    covered = pd.Series(False, table.index[judged], dtype="boolean")
    covered = covered.reindex(covered.index.union(pd.Index(own.places)))
    covered[own.places] = near.within(cutoffs)
    found = {"covered": covered}
    if len(real):
        found["structure_distance"] = pd.Series(near.structure, own.places)
        found["composition_distance"] = pd.Series(near.composition, own.places)
    rows = nearest(own, known).by_both
    found["nearest_known"] = pd.Series(
        [names[known.places[row]] if row >= 0 else None for row in rows], own.places, dtype="str"
    )
    return found


def newness_columns(table: pd.DataFrame, train: Fingerprints) -> dict[str, pd.Series]:
    """Returns `new_by_structure`, `new_by_composition` and `novel_by_fingerprint`: far from every training crystal.

    A valid sample without a fingerprint is not novel.

    Args:
        table: the fingerprints, and the column `valid`.
        train: fingerprints of the training set.
    """
    own = fingerprints_in(table)
    near = nearest(own, train)
    structure, composition = near.structure > NOVELTY.structure, near.composition > NOVELTY.composition
    novel = pd.Series(False, table.index[table["valid"]], dtype="boolean")
    verdicts = pd.Series(structure | composition, own.places, dtype="boolean")
    both = novel.index.intersection(verdicts.index)
    novel[both] = verdicts[both]
    return {
        "new_by_structure": pd.Series(structure, own.places, dtype="boolean"),
        "new_by_composition": pd.Series(composition, own.places, dtype="boolean"),
        "novel_by_fingerprint": novel,
    }


def metrics_of(
    table: pd.DataFrame, scored: pd.DataFrame, real: Fingerprints, *, cutoffs: Cutoffs, paper_mode: bool
) -> dict[str, Any]:
    """Returns coverage of the scored rows, and diversity and novelty of the valid ones.

    By default coverage is CDVAE's: it includes all samples with fingerprints, valid or not, and the denominator of
    precision is the number of scored rows. In the mode "paper" it includes valid samples only, and the denominator is
    the number of valid samples with fingerprints. A sample without a fingerprint is neither covered nor new.

    Args:
        table: one row per sample.
        scored: the scored rows, see `metrics.scored_rows`.
        real: fingerprints of the reference.
        cutoffs: cut-offs of coverage.
        paper_mode: whether rates are counted as published.
    """
    own = fingerprints_in(table)
    valid = scored.index[scored["valid"]]
    chosen = own.at(valid)
    found: dict[str, Any] = {
        "structure_diversity": {"value": diversity(chosen.structure), "crystals": len(chosen)},
        "composition_diversity": {"value": diversity(chosen.composition), "crystals": len(chosen)},
    }
    if paper_mode:
        found |= coverage(chosen, real, cutoffs, num_generated=len(chosen))
    else:
        found |= coverage(own.at(scored.index), real, cutoffs, num_generated=len(scored))
    return found | {"reference_without_fingerprint": len(real.failures)}


def novelty_of(scored: pd.DataFrame, *, paper_mode: bool) -> dict[str, Any]:
    """Returns the paper's novelty: the valid samples far from every training crystal by structure, by composition, or
    by either.
    """
    drawn = scored[scored["valid"] & scored["structure_fingerprint"].notna()]
    total = len(drawn) if paper_mode else int(scored["valid"].sum())
    structure, composition = (drawn[f"new_by_{kind}"].astype(bool) for kind in ("structure", "composition"))
    verdicts = {
        "structure_novelty": structure,
        "composition_novelty": composition,
        "fingerprint_novelty": structure | composition,
    }
    return {name: Rate(int(verdict.sum()), total).as_dict() for name, verdict in verdicts.items()}


def named(samples: Sequence[Sample]) -> list[str]:
    """Returns names of crystals with their formulas, as the column `nearest_known` shows them."""
    return [f"{s.composition.reduced_formula} ({s.name})" if s.composition else s.name for s in samples]
