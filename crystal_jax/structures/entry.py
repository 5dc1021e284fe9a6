"""Crystals as their source states them (`Entry`), and as they were parsed (`Sample`)."""

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
    """Crystal as CIF text; an empty `cif` is a sample without a crystal.

    Attributes:
        name: name, unique in its source.
        cif: CIF of one crystal; other formats are converted to CIF.
        model: the model that generated it, if the source states it.
        formula: formula that the source states in addition to the CIF.
        prompt: the prompt, possibly followed by the completion, if the source states it.
        request: number, from 0, of its request or target, if the source states it.
        request_name: name of its request, if it has one.
        requested: its request as a JSON object, "" for an empty request; None if the source does not state it.
        fault: why there is no CIF, if the source shows it.
        where: position in the source, for error messages: "my.csv, row 3".
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
        """Returns the composition stated by the source or the CIF's header, without reading sites.

        Returns None if neither states one in whole numbers of real elements. `parse` fails if the sites differ, so a
        parsed crystal has this reduced formula, or lacks hydrogens of it.
        """
        stated = formulas.composition(self.formula) or formulas.composition(stated_formula(self.cif))
        return stated if stated is not None and formulas.is_whole(stated) else None


@dataclasses.dataclass(frozen=True)
class Sample:
    """Parsed crystal: either `structure` or `failure`, the reason of its failure, is None.

    The structure has elements as species, without oxidation states and isotopes. `cif` is the entry's CIF, or that of
    the whole cell if a file has a space group without its operations.

    A `remark` states that hydrogens of the stated formula are missing.

    A crystal without a structure may still have a `composition`. Overlapping atoms, or angles that form no cell, do not
    hide the elements, and its compositional validity is evaluated as in CDVAE.
    """

    name: str
    cif: str
    structure: Structure | None
    composition: Composition | None
    failure: str | None
    remark: str | None = None


def stated_formula(cif: str) -> str:
    """Returns the `_chemical_formula_sum` of a CIF; empty if it has none."""
    found = _FORMULA.search(cif)
    return next((text.strip() for text in found.groups() if text), "") if found else ""
