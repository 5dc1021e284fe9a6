"""Crystals of the elements, the end points of every hull.

Simple structures are built from ASE's table; others are listed here as measured (Donohue, The Structures of the
Elements, 1974). Only the stable structure of an element is taken: a potential may give a lower energy to a structure
that it was not trained on. Where the stable one is a long stacking of close-packed layers or a slight distortion of
them, hcp and fcc stand in, which differ from it by a few meV/atom.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from pymatgen.core import Element, Lattice, Structure

from crystal_jax.structures import Entry, entry_of_structure
from crystal_jax.suppress_warnings import quiet

# Elements whose atoms are so far apart (caesium: 5.3 Å) that a potential may not see them as neighbours: energy in
# eV/atom by DFT, and the crystal of the Materials Project that has it.
SPARSE_ELEMENTS = {"Cs": (-25.96666879 / 29, "mp-1184151, by DFT")}
_LAST = 94  # plutonium, the last element that M3GNet knows


class _Crystal(NamedTuple):
    """Space group, lattice parameters (Å; degrees), and positions in fractions of the lattice vectors."""

    spacegroup: str
    lattice: tuple[float, float, float, float, float, float]
    positions: tuple[tuple[float, float, float], ...]


def _cubic(a: float) -> tuple[float, float, float, float, float, float]:
    return (a, a, a, 90, 90, 90)


def _orthorhombic(a: float, b: float, c: float) -> tuple[float, float, float, float, float, float]:
    return (a, b, c, 90, 90, 90)


def _hexagonal(a: float, c: float) -> tuple[float, float, float, float, float, float]:
    return (a, a, c, 90, 90, 120)


_MEASURED = {
    "H": _Crystal("Pa-3", _cubic(5.31), ((0.0402, 0.0402, 0.0402),)),
    "N": _Crystal("Pa-3", _cubic(5.66), ((0.056, 0.056, 0.056),)),
    "B": _Crystal("R-3m", _hexagonal(4.908, 12.567), ((0.1187, -0.1187, 0.8915), (0.1961, -0.1961, 0.0241))),
    "O": _Crystal("C2/m", (5.403, 3.429, 5.086, 90, 132.53, 90), ((0.042, 0, 0.152),)),
    "P": _Crystal("Cmce", _orthorhombic(3.314, 10.478, 4.376), ((0, 0.1017, 0.0806),)),
    "S": _Crystal("P3_121", _hexagonal(4.37, 4.95), ((0.2254, 0, 1 / 3),)),
    "Cl": _Crystal("Cmce", _orthorhombic(6.24, 4.48, 8.26), ((0, 0.130, 0.100),)),
    "Mn": _Crystal(
        "I-43m",
        _cubic(8.7),
        ((0, 0, 0), (0.3176, 0.3176, 0.3176), (0.3571, 0.3571, 0.0346), (0.0897, 0.0897, 0.2821)),
    ),
    "Ga": _Crystal("Cmce", _orthorhombic(4.52, 7.66, 4.53), ((0, 0.1539, 0.081),)),
    "As": _Crystal("R-3m", _hexagonal(3.760, 10.548), ((0, 0, 0.2271),)),
    "Se": _Crystal("P3_121", _hexagonal(4.366, 4.954), ((0.2254, 0, 1 / 3),)),
    "Br": _Crystal("Cmce", _orthorhombic(6.74, 4.55, 8.76), ((0, 0.135, 0.110),)),
    "Sb": _Crystal("R-3m", _hexagonal(4.307, 11.273), ((0, 0, 0.2335),)),
    "Te": _Crystal("P3_121", _hexagonal(4.457, 5.929), ((0.2636, 0, 1 / 3),)),
    "I": _Crystal("Cmce", _orthorhombic(7.27, 4.79, 9.79), ((0, 0.154, 0.117),)),
    "Bi": _Crystal("R-3m", _hexagonal(4.546, 11.862), ((0, 0, 0.2339),)),
    "Pa": _Crystal("I4/mmm", (3.93, 3.93, 3.24, 90, 90, 90), ((0, 0, 0),)),
    "U": _Crystal("Cmcm", _orthorhombic(2.854, 5.870, 4.955), ((0, 0.1025, 0.25),)),
    "Np": _Crystal("Pnma", _orthorhombic(6.663, 4.723, 4.887), ((0.036, 0.25, 0.208), (0.319, 0.25, 0.842))),
}
# Structures that ASE builds by itself, and those that are close to a close packing.
_SIMPLE = frozenset({"fcc", "bcc", "hcp", "diamond", "sc"})
_NEARLY_CLOSE_PACKED = frozenset({"In", "Hg", "Pm", "Sm", "Pu"})
_STANDING_IN = ("hcp", "fcc")
_PER_DISTANCE = {"hcp": 1.0, "fcc": 2**0.5, "diamond": 4 / 3**0.5}  # lattice constant over shortest distance


def element_crystals() -> Iterator[Entry]:
    """Yields the stable crystals of the elements from hydrogen to plutonium, named such as `element-Fe-bcc`.

    Helium, fluorine, and elements without a stable isotope that are not in ASE's table are left out.
    """
    # Late, because importing it takes long.
    from ase.data import chemical_symbols, reference_states

    for number in range(1, _LAST + 1):
        symbol, reference = chemical_symbols[number], reference_states[number]
        kinds: tuple[str, ...] = ()
        if symbol in _NEARLY_CLOSE_PACKED:
            kinds = _STANDING_IN
        elif symbol == "Sn":
            kinds = ("diamond",)
        elif reference is not None and reference["symmetry"] in _SIMPLE:
            kinds = (reference["symmetry"],)
        if symbol in _MEASURED:
            yield entry_of_structure(_measured(symbol), name=f"element-{symbol}-measured")
        else:
            for kind in kinds:
                yield entry_of_structure(_simple(symbol, kind), name=f"element-{symbol}-{kind}")


@quiet()
def _measured(symbol: str) -> Structure:
    crystal = _MEASURED[symbol]
    lattice = Lattice.from_parameters(*crystal.lattice)
    species = [symbol] * len(crystal.positions)
    return Structure.from_spacegroup(crystal.spacegroup, lattice, species, crystal.positions).get_primitive_structure()


@quiet()
def _simple(symbol: str, kind: str) -> Structure:
    """Builds a crystal with ASE's lattice constant, or where it has none with the radius of the metal's atoms."""
    from ase.build import bulk

    try:
        atoms = bulk(symbol, kind)
    except ValueError:
        radius = Element(symbol).metallic_radius or Element(symbol).atomic_radius
        assert radius is not None  # all of these elements have one
        atoms = bulk(symbol, kind, a=_PER_DISTANCE[kind] * 2 * float(radius))
    return Structure(atoms.cell.array, [symbol] * len(atoms), atoms.get_scaled_positions())
