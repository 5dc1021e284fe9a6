"""The text of crystals by their symmetry."""

import csv
import gzip
import itertools

import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher

from crystal_jax.structures import Entry, parse
from crystal_jax.symmetry.crystal import Orbit, SymmetricCrystal
from crystal_jax.symmetry.normalizer import canonical
from crystal_jax.text.formats.wyckoff import WyckoffFormat
from crystal_jax.text.layout import CrystalTextError

OLIVINE = """Li4Fe4P4O16
62
10.3 6.0 4.7
Li 4a
Fe 4c 0.28 0.97
P 4c 0.09 0.42
O 4c 0.10 0.74
O 4c 0.46 0.21
O 8d 0.17 0.05 0.28"""


def test_olivine_in_nine_lines():
    crystal = WyckoffFormat().decode(OLIVINE)
    assert crystal.spacegroup == 62
    assert crystal.lattice == (10.3, 6.0, 4.7)
    assert crystal.orbits[1] == Orbit("Fe", "c", (0.28, 0.97))
    assert crystal.num_atoms == crystal.num_atoms_primitive == 28
    assert crystal.to_structure().composition.reduced_formula == "LiFePO4"
    assert WyckoffFormat().encode(crystal) == OLIVINE
    without = OLIVINE.partition("\n")[2]
    assert WyckoffFormat(has_composition=False).encode(crystal) == without
    assert WyckoffFormat(has_composition=False).decode(without) == crystal


def test_the_composition_is_that_of_the_primitive_cell():
    salt = SymmetricCrystal(225, (5.64,), (Orbit("Cl", "b"), Orbit("Na", "a")))
    assert WyckoffFormat().encode(salt) == "Na1Cl1\n225\n5.6\nNa 4a\nCl 4b"


def test_one_spelling_for_a_position():
    """A coordinate is rounded into the cell, and orbits are sorted as printed."""
    orbits = (Orbit("O", "a", (0.999, 0.2, 0.3)), Orbit("O", "a", (0, 0, 0)))
    text = WyckoffFormat(has_composition=False).encode(SymmetricCrystal(1, (3, 4, 5, 80, 90, 100), orbits))
    assert text == "1\n3.0 4.0 5.0\n80 90 100\nO 1a 0.00 0.00 0.00\nO 1a 0.00 0.20 0.30"


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("Li4Fe4P4O16", "LiFePO4", "line 1: expected a composition"),
        ("Li4Fe4P4O16", "Li4Fe4P4O12", "the orbits make Li4Fe4P4O16, not Li4Fe4P4O12"),
        ("\n62\n", "\n231\n", "line 2: expected the number of a space group, 1 to 230"),
        ("\n62\n", "\nPnma\n", "line 2: expected the number of a space group"),
        ("10.3 6.0 4.7", "10.3 6.0", "space group 62 has 3 free lengths of the lattice, not 2"),
        ("10.3 6.0 4.7", "10.3 6.0 0.0", "lattice lengths must be positive"),
        ("10.3 6.0 4.7", "10.3 6.0 nan", "'nan' is not a number"),
        ("Li 4a", "Xx a", "line 4: not an element symbol"),
        ("Li 4a", "Li 4c 0.1 0.2\nLi 8a", "line 5: expected one of the positions 4a, 4b, 4c, 8d"),
        ("Li 4a", "Li", "line 4: expected one of the positions 4a, 4b, 4c, 8d"),
        ("Li 4a", "Li a", "line 4: expected one of the positions 4a, 4b, 4c, 8d"),
        ("Li 4a", "Li 4a 0.5", "position 4a has 0 free coordinates, not 1"),
        ("P 4c 0.09 0.42", "P 4c 0.09", "position 4c has 2 free coordinates, not 1"),
        ("P 4c 0.09 0.42", "P 4a", "line 6: position 4a has one place, which is occupied"),
        ("P 4c 0.09 0.42", "P 4c 0.09 -0.42", "'-0.42' is not a number"),
    ],
)  # fmt: skip
def test_malformed_texts_are_named(old, new, problem):
    with pytest.raises(CrystalTextError, match=problem):
        WyckoffFormat().decode(OLIVINE.replace(old, new))


def test_angles_have_a_line_of_their_own():
    text = "Ti1O2\n12\n10.1 3.7 6.5\n107\nTi 4i 0.20 0.29\nO 4i 0.06 0.37\nO 4i 0.13 0.70"
    crystal = WyckoffFormat().decode(text.replace("Ti1O2", "Ti2O4"))
    assert crystal.lattice == (10.1, 3.7, 6.5, 107.0)
    for old, new, problem in (
        ("107", "107 90", "space group 12 has 1 free angles of the lattice, not 2"),
        ("107", "180", "lattice angles must lie between 0 and 180 degrees"),
        ("\n107", "", "space group 12 has 1 free angles"),
    ):
        with pytest.raises(CrystalTextError, match=problem):
            WyckoffFormat().decode(text.replace(old, new))


@pytest.mark.parametrize("text", ["", "Li1", "Li1\n225", "Li1\n225\n4.0"])
def test_texts_that_end_too_early(text):
    with pytest.raises(CrystalTextError, match=r"ends before the first orbit|expected (a composition|the number)"):
        WyckoffFormat().decode(text)


def test_real_crystals_are_read_back(shared):
    """The text is much shorter than the sites, and gives the crystal within the printed decimals."""
    with gzip.open(shared / "data/mp20_open/val.csv.gz", "rt") as file:
        rows = list(itertools.islice(csv.DictReader(file), 5, None, 10))
    matched = 0
    for row in rows:
        structure = parse(Entry("", row["cif"])).structure
        crystal = canonical(SymmetricCrystal.from_structure(structure))
        text = WyckoffFormat().encode(crystal)
        again = WyckoffFormat().decode(text)
        assert WyckoffFormat().encode(again) == text
        assert again.spacegroup == int(row["spacegroup.number"])
        matched += StructureMatcher().fit(structure, again.to_structure())
    assert matched == len(rows) == 100
