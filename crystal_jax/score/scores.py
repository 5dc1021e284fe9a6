"""The scores of a crystal: log-probability, perplexity, and the increase in perplexity under translation (IPT)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def perplexity(log_prob: float, tokens: int) -> float:
    """Returns exp(-log_prob / tokens): the paper's 2^(CE/n), whose cross-entropy is in bits."""
    return math.exp(-log_prob / tokens)


def increase_under_translation(perplexities: Sequence[float]) -> float:
    """Returns the IPT of a crystal: the mean perplexity of its translations, minus the smallest one.

    IPT(s) = mean over g of PPL(t_g s) - PPL(t_g* s), with g* the translation of smallest perplexity (Gruver et al.,
    ICLR 2024). The paper does not state how many translations it draws. An IPT of 0 means that the model gives all
    translations the same perplexity.

    Raises:
        ValueError: there is no perplexity.
    """
    return float(np.mean(perplexities) - np.min(perplexities))


def scores_of_text(tokens: int, log_prob: float) -> dict[str, Any]:
    """Returns the columns of `scores.jsonl` for one text: its number of tokens, and its log-probability in nats."""
    return {
        "tokens": tokens,
        "log_prob": log_prob,
        "log_prob_per_token": log_prob / tokens,
        "perplexity": perplexity(log_prob, tokens),
    }


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns a line about the rows of `scores.jsonl`: how many are scored, mean perplexity and mean IPT."""
    scored = [row for row in rows if row["reason"] is None]
    line = f"{len(scored)} of {len(rows)} crystals scored"
    if scored:
        line += f"; mean perplexity {np.mean([row['perplexity'] for row in scored]):.4f}"
        if scored[0]["ipt"] is not None:
            number = len(scored[0]["translations"])
            line += f", IPT {np.mean([row['ipt'] for row in scored]):.4f} over {number} translations each"
    return line
