"""Builds the structure of an entry, or says why there is none."""

from __future__ import annotations

import numpy as np
from pymatgen.core import DummySpecies, Structure

from crystal_jax.quiet import quiet
from crystal_jax.structures.entry import Entry, Sample

MAX_LENGTH = 1e6  # Å; beyond it products of cell vectors lose all precision, and no crystal is meant


@quiet()
def parse(entry: Entry) -> Sample:
    """Builds the structure of an entry; whatever is wrong with its CIF becomes the sample's `failure`."""
    if not entry.cif.strip():
        return Sample(entry.name, entry.cif, None, entry.stated_composition(), "no CIF: the sample forms no cell")
    try:
        structure = Structure.from_str(entry.cif, fmt="cif")
        failure = _structure_fault(structure)
    except Exception as error:  # a malformed CIF raises nearly anything, and must not end the evaluation
        structure, failure = None, f"CIF does not parse: {_first_line(error)}"
    if failure or structure is None:
        return Sample(entry.name, entry.cif, None, entry.stated_composition(), failure)
    return Sample(entry.name, entry.cif, structure, structure.composition, None)


def _structure_fault(structure: Structure) -> str | None:
    if not structure.is_ordered:
        return "disordered: a site is shared or partly empty"
    if any(isinstance(specie, DummySpecies) for specie in structure.composition):
        return "a site holds no real element"
    finite = np.isfinite(structure.lattice.matrix).all() and max(structure.lattice.abc) < MAX_LENGTH
    if not finite or not structure.volume > 0 or not np.isfinite(structure.frac_coords).all():
        return "the lattice forms no cell"
    return None


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
