"""Computes the paper's composition fingerprint: scaled statistics of 22 element properties (Magpie).

Ward et al., npj Comput. Mater. 2, 16028 (2016), with the properties and statistics of matminer's preset "magpie".
Unknown properties, such as the electronegativity of argon, are not imputed: matminer imputes them by default since
January 2026, the published figures did not. After scaling they become 0, the mean. The scaler is CDVAE's fixed one
(`cdvae/common/constants.py`), which the paper's evaluator uses too.
"""

from __future__ import annotations

import csv
import functools
import io
from collections.abc import Mapping, Sequence
from importlib import resources

import numpy as np

TABLES = ("magpie", "magpie_scaler")  # files of the folder `tables`
STATISTICS = ("minimum", "maximum", "range", "mean", "avg_dev", "mode")
LENGTH = 132  # 22 properties times 6 statistics

_TIED = 1e-5  # relative tolerance for equal amounts in the statistic "mode"; the default of NumPy's `isclose`


def composition_fingerprints(compositions: Sequence[Mapping[str, float]]) -> np.ndarray:
    """Returns scaled fingerprints of compositions, (n, 132), ordered by property.

    Args:
        compositions: amounts by element symbol of each composition; they need not sum to 1.

    Raises:
        KeyError: an element is beyond oganesson.
    """
    means, stds = _scaler()
    scaled = (raw_fingerprints(compositions) - means) / stds
    filled: np.ndarray = np.nan_to_num(scaled, nan=0.0)
    return filled


def raw_fingerprints(compositions: Sequence[Mapping[str, float]]) -> np.ndarray:
    """Returns the fingerprints before scaling, (n, 132); NaN if a property of one of the elements is unknown."""
    rows = np.empty((len(compositions), LENGTH))
    for size in {len(composition) for composition in compositions}:
        chosen = [i for i, composition in enumerate(compositions) if len(composition) == size]
        rows[chosen] = _of_equal_size([compositions[i] for i in chosen])
    return rows


def _of_equal_size(compositions: Sequence[Mapping[str, float]]) -> np.ndarray:
    """Computes fingerprints of compositions with equally many elements. Axes: composition, element, property."""
    table, rows = _properties()
    values = table[[[rows[symbol] for symbol in composition] for composition in compositions]]
    amounts = np.array([list(composition.values()) for composition in compositions], float)
    shares = (amounts / amounts.sum(axis=1, keepdims=True))[:, :, None]
    most = amounts.max(axis=1, keepdims=True)
    frequent = np.isclose(amounts, most, rtol=_TIED)[:, :, None]
    low, high = values.min(axis=1), values.max(axis=1)
    mean = (shares * values).sum(axis=1)
    deviation = (shares * np.abs(values - mean[:, None])).sum(axis=1)
    mode = np.where(frequent, values, np.inf).min(axis=1)
    statistics = np.stack([low, high, high - low, mean, deviation, mode], axis=2)
    return statistics.reshape(len(compositions), LENGTH)


@functools.cache
def _properties() -> tuple[np.ndarray, dict[str, int]]:
    """Returns the properties, (118, 22), NaN where unknown, and the row of each element."""
    rows = _read("magpie")
    values = [[float(word) if word else np.nan for word in row[1:]] for row in rows]
    return np.array(values), {row[0]: i for i, row in enumerate(rows)}


@functools.cache
def _scaler() -> tuple[np.ndarray, np.ndarray]:
    """Returns means and standard deviations, (132,) each."""
    columns = np.array([[float(row[2]), float(row[3])] for row in _read("magpie_scaler")])
    return columns[:, 0], columns[:, 1]


def _read(table: str) -> list[list[str]]:
    text = resources.files("crystal_jax.evaluate").joinpath("tables", f"{table}.csv").read_text(encoding="utf-8")
    return list(csv.reader(io.StringIO(text)))[1:]
