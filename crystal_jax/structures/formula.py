"""Compares the formula that a file states with its atoms."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

from pymatgen.core import Composition, Element

_TOLERANCE = 0.01  # tolerance for an element's share of atoms, if stated amounts are rounded; one atom of 20 is 0.05
_LONGEST = 1000  # characters; no formula is longer


def composition(text: str) -> Composition | None:
    """Parses a formula, with deuterium and tritium as hydrogen; None if it is not a formula of real elements."""
    if not text.strip() or len(text) > _LONGEST:
        return None
    try:
        amounts: dict[Element, float] = defaultdict(float)
        for element, amount in Composition(text).items():
            if not isinstance(element, Element):
                return None
            amounts[Element.from_Z(element.Z)] += amount
        return Composition(amounts) or None
    except (ValueError, ArithmeticError, KeyError, RecursionError):
        return None


def is_whole(stated: Composition) -> bool:
    """Whether all amounts are whole numbers."""
    return all(float(amount).is_integer() for amount in stated.values())


def agrees(sites: Composition, stated: Composition) -> bool:
    """Whether atoms have the proportions of a stated formula.

    Whole numbers must agree exactly, so that crystals can be looked up by their stated formula. Other numbers are
    rounded, so they are compared as shares of the atoms.
    """
    if is_whole(stated):
        return _reduced(sites) == _reduced(stated)
    shares = sites.fractional_composition
    return bool(shares.almost_equals(stated.fractional_composition, rtol=0, atol=_TOLERANCE))


def lacks_only_hydrogen(sites: Composition, stated: Composition) -> bool:
    """Whether atoms agree with a stated formula except for missing hydrogens, which X-rays hardly detect."""
    heavy, heavy_stated = without_hydrogen(sites), without_hydrogen(stated)
    if not heavy or not heavy_stated or not agrees(heavy, heavy_stated):
        return False
    missing = stated["H"] / heavy_stated.num_atoms - sites["H"] / heavy.num_atoms
    return missing > _TOLERANCE


def without_hydrogen(composition: Composition) -> Composition:
    """Returns the same atoms without the hydrogens."""
    return Composition({element: amount for element, amount in composition.items() if element.symbol != "H"})


def _reduced(whole: Composition) -> dict[Any, int]:
    amounts = {element: round(amount) for element, amount in whole.items()}
    divisor = math.gcd(*amounts.values())
    return {element: amount // divisor for element, amount in amounts.items()}
