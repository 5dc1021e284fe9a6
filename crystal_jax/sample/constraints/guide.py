"""What the next fields of one text may hold, decided on the host from those before them.

The grammar and simple limits are looked up on the device at each token. Rules that need memory or geometry are asked
here, once an atom: a row that reaches a field which must be asked for waits there, while its neighbours go on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool

from crystal_jax.text.layout import ATOM_WORDS, LATTICE_WORDS

NEVER = 1 << 30  # later than every field


def field_of_atom(atom: int, field: int) -> int:
    """The number, in its text, of an atom's field: 0 is its element, 1 to 3 are its coordinates."""
    return LATTICE_WORDS + ATOM_WORDS * atom + field


class AllowedValues(NamedTuple):
    """An answer.

    Attributes:
        open: By the name of a field in `TokenAutomaton.fields`: which of its values may stand there; a field that is
            left out may hold anything.
        until: The number of the first field that may not be begun without another answer.
    """

    open: Mapping[str, Bool[np.ndarray, " n"]]
    until: int


class Guide(Protocol):
    """A rule that texts must keep to."""

    def __call__(self, fields: Sequence[str]) -> AllowedValues:
        """What may follow these fields, at least up to the field after them."""
        ...


class Guides:
    """Several rules at once."""

    def __init__(self, guides: Sequence[Guide]):
        self._guides = guides

    def __call__(self, fields: Sequence[str]) -> AllowedValues:
        """What all of them leave open, until the first of them wants to be asked."""
        grants = [guide(fields) for guide in self._guides]
        both: dict[str, Bool[np.ndarray, " n"]] = {}
        for grant in grants:
            for field, mask in grant.open.items():
                both[field] = both[field] & mask if field in both else mask
        return AllowedValues(both, min(grant.until for grant in grants))
