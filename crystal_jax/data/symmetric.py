"""Texts of crystals by their symmetry. Finding a description takes some 20 ms, so each is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from crystal_jax.errors import RequestError
from crystal_jax.text.crystal_text import Crystal, TextFormat

if TYPE_CHECKING:
    from crystal_jax.symmetry.crystal import SymmetricCrystal

_MOST_KEPT = 200_000  # descriptions, of a kilobyte each
_descriptions: dict[bytes, SymmetricCrystal] = {}


def symmetric_text(crystal: Crystal, text_format: TextFormat, rng: np.random.Generator | None) -> str:
    """Returns the text of a crystal by its symmetry.

    Args:
        crystal: the crystal.
        text_format: a format of the version `wyckoff`.
        rng: draws one of the equivalent descriptions; None takes the canonical one.

    Raises:
        RequestError: the crystal has no description.
    """
    # Late, because they need pymatgen.
    from crystal_jax.symmetry.crystal import SymmetryError
    from crystal_jax.symmetry.normalizer import random_equivalent
    from crystal_jax.text.formats.wyckoff import WyckoffFormat, canonical_crystal

    numbers = np.concatenate([crystal.lengths, crystal.angles, crystal.frac_coords.ravel()])
    key = numbers.tobytes() + " ".join(crystal.symbols).encode()
    described = _descriptions.get(key)
    if described is None:
        try:
            described = canonical_crystal(crystal)
        except SymmetryError as error:
            raise RequestError(str(error)) from error
        if len(_descriptions) < _MOST_KEPT:
            _descriptions[key] = described
    if rng is not None:
        described = random_equivalent(described, rng)
    return WyckoffFormat(decimals=text_format.decimals).encode(described)
