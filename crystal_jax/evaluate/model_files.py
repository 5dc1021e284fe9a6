"""What the model's own commands left behind: scores of crystals, and proposals for masked elements.

'crystal-jax score' and 'crystal-jax infill' run where the model runs; their files are read here, so that an evaluation
needs no JAX.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from crystal_jax.errors import UserError
from crystal_jax.evaluate.energy.hull import METASTABLE
from crystal_jax.evaluate.rate import Rate


def scores(path: Path, rows: pd.DataFrame) -> dict[str, Any]:
    """Mean perplexity, and mean increase of it under translation (IPT), of the samples; fills in `perplexity` and
    `ipt`.

    Args:
        path: `scores.jsonl` of 'crystal-jax score', of the same samples in the same order.
        rows: one a sample.

    Raises:
        UserError: it is no such file, or of other samples.
    """
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        by_index = {int(line["index"]): line for line in lines}
        for i, line in by_index.items():
            if i >= len(rows):
                raise UserError(f"{path} has scores of {len(lines)} crystals, there are {len(rows)} samples")
            if line["reason"] is None:
                rows.loc[i, "perplexity"] = line["perplexity"]
                rows.loc[i, "ipt"] = np.nan if line["ipt"] is None else line["ipt"]
        counts = {len(line["translations"]) for line in lines if line["reason"] is None}
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give scores.jsonl of 'crystal-jax score'") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not what 'crystal-jax score' writes ({error!r})") from error

    def mean(column: str) -> dict[str, Any]:
        known = rows[column].dropna()
        return {"value": float(known.mean()) if len(known) else None, "scored": len(known), "total": len(rows)}

    translations = counts.pop() if len(counts) == 1 else sorted(counts)
    return {"perplexity": mean("perplexity"), "ipt": mean("ipt") | {"translations": translations}}


def infilling(folders: Sequence[Path], rows: pd.DataFrame) -> dict[str, Any]:
    """How well masked elements are guessed, and how good the crystals are that follow from the guesses.

    `infill_accuracy`: the likeliest element is the one that was masked; `infill_probability`: its mean probability. If
    the crystals that infilling wrote are the samples, `infill_valid` and `infill_metastable`: the probability that a
    proposal, drawn from the model, or uniformly from the swaps that the radius rule admits (the paper's baseline), is
    valid or metastable; over the proposals that were written, whose share of each distribution is stated.

    Args:
        folders: outputs of 'crystal-jax infill', one for each masked element.
        rows: one a sample; its `name` is that of a file in `cif/`.

    Raises:
        UserError: a folder is none of these.
    """
    hits, probabilities, drawn = [], [], []
    by_name = {str(row["name"]): row for _, row in rows.iterrows()}
    for folder in folders:
        table, original = _proposals(folder)
        likeliest = table.sort_values("probability", ascending=False)["symbol"].iloc[0]
        hits.append(likeliest == original)
        probabilities.append(float(table.loc[table["symbol"] == original, "probability"].sum()))
        for file in sorted((folder / "cif").glob("*.cif")):
            symbol = file.stem.split("_")[1]
            if file.stem in by_name:
                proposal = table[table["symbol"] == symbol].iloc[0]
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
    """The share of good proposals under both distributions."""
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
    """The table of elements, and the one that was masked."""
    try:
        table = pd.read_csv(folder / "elements.csv", keep_default_na=False)
        original = json.loads((folder / "run.json").read_text(encoding="utf-8"))["request"]["element"]
        return table.astype({"probability": float, "baseline": float, "symbol": str}), str(original)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} is not what 'crystal-jax infill' writes ({error})") from error
