"""Writes a crystal in its space group: symmetrised, in the conventional cell."""

from __future__ import annotations

from pymatgen.core import Structure
from pymatgen.io.cif import CifWriter

from crystal_jax.suppress_warnings import quiet


@quiet()
def symmetrized_cif(structure: Structure, *, symprec: float) -> str | None:
    """Returns the CIF of a crystal in its conventional cell with its symmetry operations.

    Args:
        structure: the crystal.
        symprec: Å, within which atoms count as equivalent; they are moved onto their exact positions.

    Returns:
        The CIF; None if spglib finds no symmetry.
    """
    try:
        return str(CifWriter(structure, symprec=symprec, refine_struct=True))
    except Exception:  # spglib's error types change between versions
        return None
