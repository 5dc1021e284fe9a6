"""Finds elements of similar ionic radius: the rule of the paper's infilling, and its baseline.

Radii are pymatgen's `Element.ionic_radii`: Shannon's crystal radii (Acta Cryst. A 32, 751, 1976) in Å, one for each
oxidation state, of the high-spin ion where there are two; Na⁺ is 1.16 Å, O²⁻ 1.26 Å. Hydrogen, most noble gases and the
elements after californium have no radius, so they cannot replace another element or be replaced.
"""

from __future__ import annotations

from crystal_jax.text.crystal_text import ELEMENTS

TOLERANCE = 0.1  # Å; the published value


def radius_difference(one: str, other: str) -> float | None:
    """Returns the smallest |Δr| in Å over the oxidation states with a radius in both elements, or None."""
    from pymatgen.core import Element  # late: the flags need TOLERANCE alone

    radii, others = Element(one).ionic_radii, Element(other).ionic_radii
    shared = radii.keys() & others.keys()
    # Rounded, since radii have three decimals, and a difference of 0.1 is not less than 0.1.
    return min((round(abs(float(radii[q]) - float(others[q])), 6) for q in shared), default=None)


def elements_of_similar_radius(symbol: str, *, tolerance: float = TOLERANCE) -> tuple[str, ...]:
    """Returns the other elements with |Δr| < `tolerance` (Å) to `symbol` in some shared oxidation state.

    They are sorted by |Δr|. The oxidation state need not be that in the crystal: chlorine has radii as Cl⁻, Cl⁵⁺ and
    Cl⁷⁺. Each element occurs once; the published list repeats it for each shared state, which weights a draw from the
    list.
    """
    near = {other: radius_difference(symbol, other) for other in ELEMENTS if other != symbol}
    kept = {other: difference for other, difference in near.items() if difference is not None}
    return tuple(sorted((other for other, d in kept.items() if d < tolerance), key=kept.__getitem__))
