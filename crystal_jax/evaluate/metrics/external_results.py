"""Reads results of the model's own commands: scores of crystals, and proposals for masked elements.

'crystal-jax score' and 'crystal-jax infill' run where the model runs. An evaluation reads their files, so it needs no
JAX.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from crystal_jax.energy.settings import METASTABLE
from crystal_jax.errors import UserError
from crystal_jax.evaluate.metrics.rate import Rate
from crystal_jax.json_files import read_lines, read_object
from crystal_jax.tables import read_frame


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of samples by the model.

    Attributes:
        perplexity: by the number of the sample.
        ipt: increase in perplexity under translation, by the number of the sample; NaN where it was not measured.
        translations: numbers of translations of a sample; one number if all have as many.
    """

    perplexity: Mapping[int, float]
    ipt: Mapping[int, float]
    translations: int | Sequence[int]


def read_scores(path: Path, *, num_samples: int) -> Scores:
    """Reads `scores.jsonl` of 'crystal-jax score' for the same samples in the same order.

    Raises:
        UserError: the file is not a scores file, or belongs to other samples.
    """
    advice = "score the samples again"
    if not path.is_file():
        raise UserError(f"cannot read {path}: no such file; give scores.jsonl of 'crystal-jax score'")
    perplexity, ipt, counts = {}, {}, set()
    for line in read_lines(path, advice=advice):
        number = line.integer("index", least=0)
        if number >= num_samples:
            raise UserError(f"{path} has a score of crystal {number}, but there are {num_samples} samples; {advice}")
        if "reason" not in line:
            perplexity[number] = line.number("perplexity")
            ipt[number] = line.number("ipt", np.nan)
            counts.add(len(line.items("translations")))
    return Scores(perplexity, ipt, counts.pop() if len(counts) == 1 else sorted(counts))


def score_columns(scores: Scores) -> dict[str, pd.Series]:
    """Returns `perplexity` and `ipt`."""
    return {
        "perplexity": pd.Series(scores.perplexity, dtype="float64"),
        "ipt": pd.Series(scores.ipt, dtype="float64"),
    }


def score_metrics(table: pd.DataFrame, scores: Scores) -> dict[str, Any]:
    """Returns the mean perplexity of the samples and its mean increase under translation (IPT)."""

    def mean(column: str) -> dict[str, Any]:
        known = table[column].dropna()
        return {"value": float(known.mean()) if len(known) else None, "scored": len(known), "total": len(table)}

    return {"perplexity": mean("perplexity"), "ipt": mean("ipt") | {"translations": scores.translations}}


@dataclasses.dataclass(frozen=True)
class Infilled:
    """Result of infilling one crystal.

    Attributes:
        folder: the folder that 'crystal-jax infill' wrote.
        elements: its `elements.csv`: symbol, probability, baseline.
        original: the masked element.
    """

    folder: Path
    elements: pd.DataFrame
    original: str


def infill_metrics(infilled: Sequence[Infilled], rows: pd.DataFrame) -> dict[str, Any]:
    """Measures how well masked elements are predicted, and how good the resulting crystals are.

    `infill_accuracy` is the rate at which the most likely element is the masked one; `infill_probability` is the mean
    probability of the masked one. If the samples are the crystals that infilling wrote, `infill_valid` and
    `infill_metastable` are added. They are the probability that a proposal is valid or metastable if it is drawn from
    the model, or uniformly from the swaps that the radius rule admits (the paper's baseline). Both are taken over the
    proposals that were written; the share of each distribution that these cover is stated.

    Args:
        infilled: results of 'crystal-jax infill', one per masked element.
        rows: one row per sample; its `name` is the name of a file in `cif/`.

    Raises:
        UserError: a crystal in a folder belongs to no element of its table.
    """
    hits, probabilities, drawn = [], [], []
    by_name = {str(row["name"]): row for _, row in rows.iterrows()}
    for one in infilled:
        folder, table, original = one.folder, one.elements, one.original
        likeliest = table.sort_values("probability", ascending=False)["symbol"].iloc[0]
        hits.append(likeliest == original)
        probabilities.append(float(table.loc[table["symbol"] == original, "probability"].sum()))
        for file in sorted((folder / "cif").glob("*.cif")):
            if file.stem in by_name:
                symbol = file.stem.split("_")[1] if "_" in file.stem else ""
                proposals = table[table["symbol"] == symbol]
                if proposals.empty:
                    raise UserError(f"{file} is of no element in {folder / 'elements.csv'}; infill the crystal again")
                proposal = proposals.iloc[0]
                drawn.append((proposal["probability"], proposal["baseline"], by_name[file.stem]))
    found: dict[str, Any] = {
        "infill_accuracy": Rate.of(hits).as_dict(),
        "infill_probability": {"value": float(np.mean(probabilities)), "masked": len(infilled)},
    }
    if drawn:
        found["infill_valid"] = _expected(drawn, lambda row: bool(row["valid"]), len(infilled))
        if rows["e_above_hull"].notna().any():
            found["infill_metastable"] = _expected(drawn, lambda row: row["e_above_hull"] < METASTABLE, len(infilled))
    return found


def _expected(drawn: list[tuple[float, float, pd.Series]], good: Any, masked: int) -> dict[str, Any]:
    """Returns the share of good proposals under both distributions."""
    weights = np.array([[model, baseline] for model, baseline, _ in drawn])
    verdicts = np.array([bool(good(row)) for _, _, row in drawn])
    totals = weights.sum(axis=0)
    shares = [float(w[verdicts].sum() / total) if total else None for w, total in zip(weights.T, totals, strict=True)]
    return {
        "model": shares[0],
        "uniform_swap": shares[1],
        "of_probability": [float(total) / masked for total in totals],
        "proposals": len(drawn),
    }


def read_infilled(folder: Path) -> Infilled:
    """Reads a folder that 'crystal-jax infill' wrote.

    Raises:
        UserError: the folder is not an output of infilling, or is damaged.
    """
    advice = "give a folder that 'crystal-jax infill' wrote"
    for name in ("elements.csv", "run.json"):
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}; {advice}")
    table = read_frame(folder / "elements.csv", {"symbol": "str", "probability": "float64", "baseline": "float64"})
    original = read_object(folder / "run.json", advice=advice).part("request").text("element")
    numbers = table[["probability", "baseline"]].to_numpy(float)
    if table.empty or table["symbol"].isna().any() or not np.isfinite(numbers).all():
        raise UserError(f"{folder / 'elements.csv'} is damaged: a row lacks a symbol or a number; {advice}")
    return Infilled(folder, table, original)
