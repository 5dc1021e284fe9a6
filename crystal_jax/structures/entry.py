"""A crystal as its source gives it, and as it was read."""

from __future__ import annotations

import dataclasses
import re

from pymatgen.core import Composition, Element, Structure

_FORMULA = re.compile(r"^_chemical_formula_sum\s+['\"]?([^'\"\n]+)", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A crystal as text; an empty `cif` is a sample whose text did not parse."""

    name: str
    cif: str
    model: str = ""  # what wrote it, if the source says so
    formula: str = ""  # if the source says so
    prompt: str = ""  # what was asked, and maybe the answer, if the source says so
    request: int | None = None  # number of the request (or target) that it answers, from 0, if the source says so

    def stated_composition(self) -> Composition | None:
        """What the source or the CIF's header states; no site is read.

        None if neither does, or not in whole numbers of real elements.
        """
        in_cif = _FORMULA.search(self.cif)
        try:
            stated = Composition(self.formula or (in_cif[1] if in_cif else ""))
        except ValueError:
            return None
        whole = all(isinstance(el, Element) and float(amount).is_integer() for el, amount in stated.items())
        return stated if stated and whole else None


@dataclasses.dataclass(frozen=True)
class Sample:
    """A crystal that was read: either its `structure` or the reason of its `failure` is None.

    A crystal without a structure may still have a `composition`: atoms on top of each other, or angles that form no
    cell, do not hide which elements were meant, and as in CDVAE its compositional validity is judged.
    """

    name: str
    cif: str
    structure: Structure | None
    composition: Composition | None
    failure: str | None
