"""Reads VASP's POSCAR and CONTCAR."""

from __future__ import annotations

import warnings

from pymatgen.io.vasp import Poscar
from pymatgen.io.vasp.inputs import BadPoscarWarning

from crystal_jax.structures.build import entry_of
from crystal_jax.structures.entry import Entry
from crystal_jax.structures.formats.cif import of_elements, one_line
from crystal_jax.suppress_warnings import quiet


def is_poscar(name: str) -> bool:
    """Whether a file name, without `.gz`, is a POSCAR's."""
    lower = name.lower()
    return lower.endswith((".vasp", ".poscar")) or lower.startswith(("poscar", "contcar"))


@quiet()
def read_poscar(text: str, *, name: str) -> Entry:
    """Returns the crystal of a POSCAR; if there is none, the entry has a reason in place of a CIF."""
    try:
        _check_counts(text)
        with warnings.catch_warnings():
            warnings.simplefilter("error", BadPoscarWarning)  # otherwise pymatgen invents missing element names
            structure = of_elements(Poscar.from_str(text).structure)
    except Exception as error:  # pymatgen raises many types of errors
        return Entry(name, "", fault=f"not a readable POSCAR: {one_line(error)}")
    symbols = [site.specie.symbol for site in structure]
    return entry_of(structure.lattice.matrix, symbols, structure.frac_coords, name=name)


def _check_counts(text: str) -> None:
    """Checks that the file has enough lines for its atoms.

    Raises:
        ValueError: it does not.
    """
    lines = text.splitlines()
    for line in lines[5:7]:
        words = line.split("!")[0].split()
        if words and all(word.isdecimal() for word in words) and sum(map(int, words)) > len(lines):
            raise ValueError(f"it claims {sum(map(int, words))} atoms and has {len(lines)} lines")
