"""Converts crystals given as numbers to CIF text, the form in which all other code reads them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pymatgen.core import Element, Lattice, Structure

from crystal_jax.structures.entry import Entry
from crystal_jax.structures.formats.cif import write_cif
from crystal_jax.structures.lattice import matrix_fault
from crystal_jax.suppress_warnings import quiet


def entry_of(
    matrix: np.ndarray, symbols: Sequence[str], frac_coords: np.ndarray, *, name: str = "", request: int | None = None
) -> Entry:
    """Returns the entry of a crystal; if the numbers are not a crystal, it has a reason in place of a CIF.

    Args:
        matrix: the lattice vectors in Å as rows, [3, 3].
        symbols: element symbols, one per site; D is read as H.
        frac_coords: fractional coordinates, [n_sites, 3].
        name: name of the crystal; empty if the source has none.
        request: see `Entry`.
    """
    elements = []
    for symbol in symbols:
        if not Element.is_valid_symbol(symbol):
            return Entry(name, "", fault=f"{symbol} is no element", request=request)
        elements.append(Element.from_Z(Element(symbol).Z))
    formula = formula_of(elements)
    if fault := _fault(matrix, elements, frac_coords):
        return Entry(name, "", formula=formula, fault=fault, request=request)
    structure = Structure(Lattice(matrix), elements, frac_coords)
    return Entry(name, write_cif(structure), formula=formula, request=request)


def entry_of_structure(structure: Structure, *, name: str = "") -> Entry:
    """Returns the entry of a structure in memory; a disordered one has a reason in place of a CIF."""
    if not structure.is_ordered:
        return Entry(name, "", fault="disordered: a site is shared or partly empty")
    symbols = [getattr(site.specie, "element", site.specie).symbol for site in structure]  # species have charges
    return entry_of(structure.lattice.matrix, symbols, structure.frac_coords, name=name)


def _fault(matrix: np.ndarray, elements: Sequence[Element], frac_coords: np.ndarray) -> str | None:
    """Returns why the numbers are not a crystal, or None if they are."""
    if not elements:
        return "it has no atoms"
    if np.shape(frac_coords) != (len(elements), 3) or np.shape(matrix) != (3, 3):
        return "the numbers of sites, coordinates and lattice vectors do not fit together"
    if not np.isfinite(frac_coords).all():
        return "a coordinate is not finite"
    return matrix_fault(np.asarray(matrix, float))


@quiet()
def formula_of(elements: Sequence[Element]) -> str:
    """Returns the formula of a cell's atoms: "Na4 Cl4"."""
    counts: dict[Element, int] = {}
    for element in elements:
        counts[element] = counts.get(element, 0) + 1
    return " ".join(f"{element.symbol}{count}" for element, count in sorted(counts.items(), key=lambda item: item[0].X))
