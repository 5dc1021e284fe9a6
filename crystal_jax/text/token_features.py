"""Features of the tokens of a crystal, for initialising the embedding of a model trained from scratch.

The coordinates next to 0.31 are 0.30 and 0.32, and 0.99 is next to 0.00; iron is similar to cobalt and ruthenium. A
model with independent random embeddings has to learn this from the data, separately for each token. For rare tokens the
data do not suffice.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from pymatgen.core import Element

from crystal_jax.text.crystal_text import ELEMENTS
from crystal_jax.text.tokenizer import AtomCoordinateTokenizer

# Frequencies in each range: low ones separate distant values, high ones adjacent ones. Those of angles and coordinates
# include the fractions that symmetry prefers.
_LENGTHS, _LENGTH_WAVES = np.arange(10, 600), (1, 2, 4, 8, 16, 32, 64, 128)  # tenths of an Å; periods per 60 Å
_ANGLES, _ANGLE_WAVES = np.arange(1, 180), (1, 2, 3, 4, 6, 8, 12, 24, 60)  # degrees; periods per turn
_COORDINATES, _COORDINATE_WAVES = np.arange(101), (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 25, 50)  # hundredths
_ELECTRONEGATIVITIES = np.linspace(0.7, 4.0, 8)  # Pauling's scale
_RADII = np.linspace(0.25, 2.6, 8)  # Å
_OXIDATION_STATES = range(-4, 9)
_GROUP_WEIGHT, _OTHER_WEIGHT = 2.0, 1.5  # weights of properties that decide which elements are alike


def token_features(tokenizer: AtomCoordinateTokenizer) -> Float[np.ndarray, "v f"]:
    """Returns features of lengths, angles, coordinates and elements, in rows of mean square 1; other tokens have zeros.

    The four kinds have separate columns, so their rows are orthogonal. Numbers are encoded as sines and cosines (as in
    Vaswani et al., arXiv:1706.03762, section 3.5). Elements are encoded by period, group, block, electronegativity,
    common oxidation states and radius.
    """
    kinds = (
        ([f"{i / 10:.1f}" for i in _LENGTHS], _waves(_LENGTHS / 600, _LENGTH_WAVES)),
        ([str(i) for i in _ANGLES], _waves(_ANGLES / 360, _ANGLE_WAVES)),
        ([f"{i / 100:.2f}" for i in _COORDINATES], _waves(_COORDINATES / 100, _COORDINATE_WAVES)),
        (ELEMENTS, _elements()),
    )
    width = sum(values.shape[1] for _, values in kinds)
    features = np.zeros((tokenizer.vocab_size, width))
    start = 0
    for spellings, values in kinds:
        ids = [tokenizer.spell("", spelling)[0] for spelling in spellings]
        stop = start + values.shape[1]
        features[ids, start:stop] = values * np.sqrt(width / (values**2).sum(axis=1, keepdims=True))
        start = stop
    return features


def _waves(phase: Float[np.ndarray, " n"], waves: Sequence[int]) -> Float[np.ndarray, "n f"]:
    angle = 2 * np.pi * phase[:, None] * np.asarray(waves)
    return np.concatenate([np.cos(angle), np.sin(angle)], axis=1)


def _elements() -> Float[np.ndarray, "e f"]:
    rows = np.array([_element(Element(symbol)) for symbol in ELEMENTS])
    centred: Float[np.ndarray, "e f"] = rows - rows.mean(axis=0)
    return centred


def _element(element: Element) -> list[float]:
    electronegativity = element.data.get("X") or 2.0  # noble gases have none
    radius = element.atomic_radius or 1.5
    return [
        *(np.arange(1, 8) == element.row),
        *_GROUP_WEIGHT * (np.arange(1, 19) == element.group),
        *_OTHER_WEIGHT * (np.array(list("spdf")) == element.block),
        *np.exp(-0.5 * ((electronegativity - _ELECTRONEGATIVITIES) / 0.4) ** 2),
        *_OTHER_WEIGHT * np.isin(_OXIDATION_STATES, element.common_oxidation_states),
        *np.exp(-0.5 * ((radius - _RADII) / 0.25) ** 2),
    ]
