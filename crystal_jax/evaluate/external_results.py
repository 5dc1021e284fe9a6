"""Reads results of the model's own commands: scores of crystals, and proposals for masked elements.

'crystal-jax score' and 'crystal-jax infill' run where the model runs. An evaluation reads their files, so it needs no
JAX.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from crystal_jax.energy.hull import METASTABLE
from crystal_jax.errors import UserError
from crystal_jax.evaluate.rate import Rate
from crystal_jax.json_files import read_lines, read_object
from crystal_jax.tables import read_frame


def scores(path: Path, rows: pd.DataFrame) -> dict[str, Any]:
    """Returns the mean perplexity of the samples and its mean increase under translation (IPT); fills in the columns
    `perplexity` and `ipt`.

    Args:
        path: `scores.jsonl` of 'crystal-jax score' for the same samples in the same order.
        rows: one row per sample.

    Raises:
        UserError: the file is not a scores file, or belongs to other samples.
    """
    advice = "score the samples again"
    if not path.is_file():
        raise UserError(f"cannot read {path}: no such file; give scores.jsonl of 'crystal-jax score'")
    counts = set()
    for line in read_lines(path, advice=advice):
        number = line.integer("index", least=0)
        if number >= len(rows):
            raise UserError(f"{path} has a score of crystal {number}, but there are {len(rows)} samples; {advice}")
        if "reason" not in line:
            rows.loc[number, "perplexity"] = line.number("perplexity")
            rows.loc[number, "ipt"] = line.number("ipt", np.nan)
            counts.add(len(line.items("translations")))

    def mean(column: str) -> dict[str, Any]:
        known = rows[column].dropna()
        return {"value": float(known.mean()) if len(known) else None, "scored": len(known), "total": len(rows)}

    translations = counts.pop() if len(counts) == 1 else sorted(counts)
    return {"perplexity": mean("perplexity"), "ipt": mean("ipt") | {"translations": translations}}


def infilling(folders: Sequence[Path], rows: pd.DataFrame) -> dict[str, Any]:
    """Measures how well masked elements are predicted, and how good the resulting crystals are.

    `infill_accuracy` is the rate at which the most likely element is the masked one; `infill_probability` is the mean
    probability of the masked one. If the samples are the crystals that infilling wrote, `infill_valid` and
    `infill_metastable` are added. They are the probability that a proposal is valid or metastable if it is drawn from
    the model, or uniformly from the swaps that the radius rule admits (the paper's baseline). Both are taken over the
    proposals that were written; the share of each distribution that these cover is stated.

    Args:
        folders: outputs of 'crystal-jax infill', one per masked element.
        rows: one row per sample; its `name` is the name of a file in `cif/`.

    Raises:
        UserError: a folder is not an output of 'crystal-jax infill'.
    """
    hits, probabilities, drawn = [], [], []
    by_name = {str(row["name"]): row for _, row in rows.iterrows()}
    for folder in folders:
        table, original = _proposals(folder)
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
        "infill_probability": {"value": float(np.mean(probabilities)), "masked": len(folders)},
    }
    if drawn:
        found["infill_valid"] = _expected(drawn, lambda row: bool(row["valid"]), len(folders))
        if rows["e_above_hull"].notna().any():
            found["infill_metastable"] = _expected(drawn, lambda row: row["e_above_hull"] < METASTABLE, len(folders))
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


def _proposals(folder: Path) -> tuple[pd.DataFrame, str]:
    """Returns the table of elements, and the masked element.

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
    return table, original
