"""Computes the metrics that use fingerprints: coverage, diversity, and the paper's novelty."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pandas as pd

from crystal_jax.evaluate.coverage import NOVELTY, Cutoffs, coverage, diversity, nearest
from crystal_jax.evaluate.fingerprints import Fingerprints, fingerprints
from crystal_jax.evaluate.oxidation import OxidationTable
from crystal_jax.evaluate.rate import Rate
from crystal_jax.evaluate.validity import compositional_invalid_reason, structural_invalid_reason
from crystal_jax.structures import Sample


@dataclasses.dataclass(frozen=True)
class FingerprintSets:
    """Fingerprints of the three sets that are compared.

    Attributes:
        generated: fingerprints of the samples, by their index among all samples. By default, as in CDVAE, all samples
            with a structure are included; in the mode "paper" only the valid ones.
        real: fingerprints of the reference.
        train: fingerprints of the training set, if they were requested.
        names: names of the training set's crystals, with formulas, if its fingerprints are present; otherwise of the
            reference's.
    """

    generated: Fingerprints
    real: Fingerprints
    train: Fingerprints | None
    names: Sequence[str] = ()


def compute_fingerprints(
    samples: Sequence[Sample],
    rows: pd.DataFrame,
    real: Sequence[Sample],
    train: Sequence[Sample] | None,
    *,
    table: OxidationTable,
    mode: str,
    workers: int | None = None,
    progress: bool = False,
) -> FingerprintSets:
    """Computes the fingerprints of samples, reference and training set.

    In the mode "paper", as published, a sample without a fingerprint is not valid, which is recorded in `rows`, and
    only valid crystals of the reference are used.
    """
    of = samples
    if mode == "paper":
        of = [s if v else _without_structure(s) for s, v in zip(samples, rows["valid"], strict=True)]
    generated = fingerprints(of, what="fingerprints", workers=workers, progress=progress)
    if mode == "paper":
        lost = [place for place in generated.failures if rows.loc[place, "valid"]]
        rows.loc[lost, "valid"] = False
        rows.loc[lost, "failure_reason"] = "no fingerprint"
        real = [s for s in real if s.structure and s.composition and not _fault(s, table)]
    of_real = fingerprints(real, what="fingerprints, reference", workers=workers, progress=progress)
    of_train = None
    if train is not None:
        of_train = fingerprints(train, what="fingerprints, training set", workers=workers, progress=progress)
    return FingerprintSets(generated, of_real, of_train, [_named(s) for s in (real if train is None else train)])


def _named(sample: Sample) -> str:
    return f"{sample.composition.reduced_formula} ({sample.name})" if sample.composition else sample.name


def _fault(sample: Sample, table: OxidationTable) -> str | None:
    assert sample.structure is not None
    assert sample.composition is not None
    return structural_invalid_reason(sample.structure) or compositional_invalid_reason(sample.composition, table)


def _without_structure(sample: Sample) -> Sample:
    return dataclasses.replace(sample, structure=None, failure=sample.failure or "not valid")


def metrics_of(
    rows: pd.DataFrame, judged: pd.DataFrame, prints: FingerprintSets, *, cutoffs: Cutoffs, mode: str
) -> dict[str, Any]:
    """Returns coverage of the scored rows, and diversity and novelty of the valid ones; fills in the columns of `rows`.

    By default coverage is CDVAE's: it includes all samples with fingerprints, valid or not, and the denominator of
    precision is the number of scored rows. In the mode "paper" it includes valid samples only, and the denominator is
    the number of valid samples with fingerprints. A sample without a fingerprint is neither covered nor new.

    Args:
        rows: one row per sample.
        judged: the scored rows, see `scored_rows`.
        prints: see `FingerprintSets`.
        cutoffs: cut-offs of coverage.
        mode: "default" or "paper".
    """
    valid = judged.index[judged["valid"]]
    chosen = prints.generated.at(valid)
    total = len(chosen) if mode == "paper" else len(valid)
    found: dict[str, Any] = {
        "structure_diversity": {"value": diversity(chosen.structure), "crystals": len(chosen)},
        "composition_diversity": {"value": diversity(chosen.composition), "crystals": len(chosen)},
    }
    near = nearest(prints.generated, prints.real)
    rows.loc[rows["valid"] if mode == "paper" else rows["density"].notna(), "covered"] = False
    rows.loc[prints.generated.places, "covered"] = near.within(cutoffs)
    if len(prints.real):
        rows.loc[prints.generated.places, "structure_distance"] = near.structure
        rows.loc[prints.generated.places, "composition_distance"] = near.composition
    if mode == "paper":
        found |= coverage(chosen, prints.real, cutoffs, num_generated=total)
    else:
        found |= coverage(prints.generated.at(judged.index), prints.real, cutoffs, num_generated=len(judged))
    found["reference_without_fingerprint"] = len(prints.real.failures)
    known = prints.real if prints.train is None else prints.train
    for place, row in zip(prints.generated.places, nearest(prints.generated, known).by_both, strict=True):
        rows.loc[place, "nearest_known"] = prints.names[known.places[row]] if row >= 0 else None
    if prints.train is not None:
        found |= _novelty(rows, chosen, prints.generated, prints.train, total)
    return found


def _novelty(
    rows: pd.DataFrame, chosen: Fingerprints, generated: Fingerprints, train: Fingerprints, total: int
) -> dict[str, Any]:
    """Computes the paper's novelty: far from every training crystal by structure, by composition, or by either."""
    near = nearest(generated, train)
    new = {
        "structure_novelty": near.structure > NOVELTY.structure,
        "composition_novelty": near.composition > NOVELTY.composition,
    }
    new["fingerprint_novelty"] = new["structure_novelty"] | new["composition_novelty"]
    verdicts = pd.Series(new["fingerprint_novelty"], index=generated.places)
    rows.loc[rows["valid"], "novel_by_fingerprint"] = False
    valid = [place for place in generated.places if rows.loc[place, "valid"]]
    rows.loc[valid, "novel_by_fingerprint"] = verdicts[valid]
    row_of = {int(place): row for row, place in enumerate(generated.places)}
    drawn = [row_of[int(place)] for place in chosen.places]
    return {name: Rate(int(verdicts[drawn].sum()), total).as_dict() for name, verdicts in new.items()}
