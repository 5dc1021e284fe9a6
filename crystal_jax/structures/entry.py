"""A crystal as its source gives it, and as it was read."""

from __future__ import annotations

import dataclasses
import re

from pymatgen.core import Composition, Structure

from crystal_jax.structures import formula as formulas

_FORMULA = re.compile(
    r"""^_chemical_formula_sum\s+(?:;\s*([^;]*)\n;|'([^'\n]*)'|"([^"\n]*)"|([^'"\s;][^\n]*))""", re.MULTILINE
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A crystal as CIF text; an empty `cif` is a sample that forms no crystal.

    Attributes:
        name: unique in its source.
        cif: one crystal's CIF; what other formats hold was written as such.
        model: what made it, if the source says so.
        formula: what the source states beside the CIF.
        prompt: what was asked, and maybe the answer, if the source says so.
        request: the number, from 0, of the request or target that it answers, if the source says so.
        request_name: the name of that request, if it has one.
        requested: that request as a JSON object, "" where nothing was asked; None if the source does not say.
        fault: why there is no CIF, if the source shows it.
        where: its place in the source, for messages: "my.csv, row 3".
    """

    name: str
    cif: str
    model: str = ""
    formula: str = ""
    prompt: str = ""
    request: int | None = None
    request_name: str = ""
    requested: str | None = None
    fault: str = ""
    where: str = dataclasses.field(default="", compare=False)

    def stated_composition(self) -> Composition | None:
        """Returns what the source or the CIF's header states; no site is read.

        None if neither does, or not in whole numbers of real elements. `parse` fails where the sites are others, so a
        crystal that was read has the reduced formula that this gives, or lacks hydrogens of it.
        """
        stated = formulas.composition(self.formula) or formulas.composition(stated_formula(self.cif))
        return stated if stated is not None and formulas.is_whole(stated) else None


@dataclasses.dataclass(frozen=True)
class Sample:
    """A crystal that was read: either its `structure` or the reason of its `failure` is None.

    The structure is of elements, without oxidation states and isotopes. Its `cif` is the entry's, or, where a file gave
    a space group without its operations, that of the whole cell.

    A `remark` says that it lacks hydrogens of its stated formula.

    A crystal without a structure may still have a `composition`: atoms on top of each other, or angles that form no
    cell, do not hide which elements were meant, and as in CDVAE its compositional validity is judged.
    """

    name: str
    cif: str
    structure: Structure | None
    composition: Composition | None
    failure: str | None
    remark: str | None = None


def stated_formula(cif: str) -> str:
    """Returns the `_chemical_formula_sum` of a CIF, empty if it has none."""
    found = _FORMULA.search(cif)
    return next((text.strip() for text in found.groups() if text), "") if found else ""
