"""Guides: constraints that the host evaluates to find the values that the next fields of a sequence may hold.

The word is that of Outlines. The grammar and simple limits are tables on the device, which are looked up at each token.
Constraints that need memory or geometry are evaluated here, once or twice per atom: a slot that reaches a field for
which it needs an answer waits there, while the other slots go on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool

from crystal_jax.text.layout import ATOM_WORDS, LATTICE_WORDS

NEVER = 1 << 30  # later than every field


def field_of_atom(atom: int, field: int) -> int:
    """Returns the number, in its sequence, of a field of an atom: 0 is the element, 1 to 3 are the coordinates."""
    return LATTICE_WORDS + ATOM_WORDS * atom + field


class AllowedValues(NamedTuple):
    """The answer of a guide: the values that the next fields may hold.

    Attributes:
        open: Mask over the values of a field, by its name in `TokenAutomaton.fields`; a field that is left out may hold
            any value.
        until: Number of the first field that needs another answer before it is started.
    """

    open: Mapping[str, Bool[np.ndarray, " n"]]
    until: int


@runtime_checkable
class Guide(Protocol):
    """A constraint on sequences."""

    def __call__(self, fields: Sequence[str]) -> AllowedValues:
        """Returns what may follow these completed fields, at least for the next field."""
        ...


class Guides:
    """Several guides combined into one."""

    def __init__(self, guides: Sequence[Guide]):
        self._guides = guides

    def __call__(self, fields: Sequence[str]) -> AllowedValues:
        """Returns the values that all guides allow, up to the first field at which one needs another call."""
        grants = [guide(fields) for guide in self._guides]
        both: dict[str, Bool[np.ndarray, " n"]] = {}
        for grant in grants:
            for field, mask in grant.open.items():
                both[field] = both[field] & mask if field in both else mask
        return AllowedValues(both, min(grant.until for grant in grants))
