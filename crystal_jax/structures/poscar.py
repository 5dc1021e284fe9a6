"""Reads VASP's POSCAR and CONTCAR."""

from __future__ import annotations

import warnings

from pymatgen.io.vasp import Poscar
from pymatgen.io.vasp.inputs import BadPoscarWarning

from crystal_jax.structures.build import entry_of
from crystal_jax.structures.cif import of_elements, one_line
from crystal_jax.structures.entry import Entry
from crystal_jax.suppress_warnings import quiet


def is_poscar(name: str) -> bool:
    """Says whether a file's name, without `.gz`, is one of POSCAR's."""
    lower = name.lower()
    return lower.endswith((".vasp", ".poscar")) or lower.startswith(("poscar", "contcar"))


@quiet()
def read_poscar(text: str, *, name: str) -> Entry:
    """Returns the crystal of a POSCAR, with the reason in place of a CIF where there is none."""
    try:
        _check_counts(text)
        with warnings.catch_warnings():
            warnings.simplefilter("error", BadPoscarWarning)  # else elements that are not named are invented
            structure = of_elements(Poscar.from_str(text).structure)
    except Exception as error:  # pymatgen raises nearly anything
        return Entry(name, "", fault=f"not a readable POSCAR: {one_line(error)}")
    symbols = [site.specie.symbol for site in structure]
    return entry_of(structure.lattice.matrix, symbols, structure.frac_coords, name=name)


def _check_counts(text: str) -> None:
    """Raises ValueError where more atoms are claimed than the file has lines."""
    lines = text.splitlines()
    for line in lines[5:7]:
        words = line.split("!")[0].split()
        if words and all(word.isdecimal() for word in words) and sum(map(int, words)) > len(lines):
            raise ValueError(f"it claims {sum(map(int, words))} atoms and has {len(lines)} lines")
