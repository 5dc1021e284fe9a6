"""Formats space group symbols."""

from __future__ import annotations

import re

from pymatgen.symmetry.groups import sg_symbol_from_int_number

MONOCLINIC = range(3, 16)  # numbers of space groups


def symbol(number: int) -> str:
    """Returns the short Hermann-Mauguin symbol, like "P2₁/c" for 14."""
    name = sg_symbol_from_int_number(number)
    if number in MONOCLINIC:  # pymatgen writes P12_1/c1, with the two axes without symmetry
        name = re.sub(r"^(\w)1(.+)1$", r"\1\2", name)
    return re.sub(r"_(\d)", lambda screw: "₀₁₂₃₄₅"[int(screw[1])], name)
