"""Structures described by their symmetry, and back."""

import csv
import gzip
import itertools

import numpy as np
import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from crystal_jax.structures import Entry, parse
from crystal_jax.symmetry.crystal import Orbit, SymmetricCrystal
from crystal_jax.symmetry.normalizer import canonical, equivalents, normalizer, polar_axes
from crystal_jax.symmetry.operations import NUM_GROUPS, standard_operations

# Of pymatgen's own calls of spglib.
pytestmark = pytest.mark.filterwarnings("ignore:Set OLD_ERROR_HANDLING:DeprecationWarning")
MATCHER = StructureMatcher(ltol=0.05, stol=0.05, angle_tol=2, attempt_supercell=False)


def rock_salt():
    return Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


def test_rock_salt():
    crystal = SymmetricCrystal.from_structure(rock_salt().get_primitive_structure())
    assert crystal.spacegroup == 225
    assert crystal.lattice == (5.64,)
    assert {orbit.letter for orbit in crystal.orbits} == {"a", "b"}
    assert crystal.num_atoms == 8
    assert crystal.num_atoms_primitive == 2
    assert crystal.composition == {"Na": 4, "Cl": 4}
    assert MATCHER.fit(crystal.to_structure(), rock_salt())
    assert len(crystal.to_structure()) == 2
    assert len(crystal.to_structure(primitive=False)) == 8


def test_an_olivine_with_free_coordinates():
    """LiFePO4: four formula units, on a, four times c, and d."""
    lattice = Lattice.orthorhombic(10.33, 6.01, 4.69)
    sites = [
        ("Li", (0, 0, 0)), ("Fe", (0.282, 0.25, 0.975)), ("P", (0.095, 0.25, 0.418)), ("O", (0.097, 0.25, 0.743)),
        ("O", (0.457, 0.25, 0.206)), ("O", (0.166, 0.046, 0.285)),
    ]  # fmt: skip
    olivine = Structure.from_spacegroup("Pnma", lattice, [name for name, _ in sites], [place for _, place in sites])
    crystal = canonical(SymmetricCrystal.from_structure(olivine))
    assert crystal.spacegroup == 62
    assert [f"{orbit.element}{orbit.letter}" for orbit in crystal.orbits] == ["Lia", "Fec", "Pc", "Oc", "Oc", "Od"]
    assert crystal.num_atoms == 28
    np.testing.assert_allclose(crystal.lattice, (10.33, 6.01, 4.69))
    assert MATCHER.fit(crystal.to_structure(), olivine)


@pytest.mark.parametrize("spacegroup", range(1, NUM_GROUPS + 1))
def test_primitive_cells(spacegroup):
    operations = standard_operations(spacegroup)
    points = operations.num_lattice_points
    assert len(operations.rotations) % points == 0
    pure = operations.translations[(operations.rotations == np.eye(3, dtype=int)).all(axis=(1, 2))] / 24
    assert len(pure) == points
    in_primitive = pure @ np.linalg.inv(operations.primitive_basis)
    np.testing.assert_allclose(in_primitive, np.round(in_primitive), atol=1e-9)


@pytest.mark.parametrize("spacegroup", range(1, NUM_GROUPS + 1))
def test_the_normalizer_maps_the_group_to_itself(spacegroup):
    operations = standard_operations(spacegroup)
    point = np.array([0.0377, 0.1559, 0.2712])
    orbit = operations.orbit(point)
    found = normalizer(spacegroup)
    for each in found:
        moved = orbit @ each.rotation.T + each.translation
        apart = operations.orbit(moved[0])[:, None] - moved[None]
        assert (np.abs(apart - np.round(apart)) < 1e-6).all(axis=-1).any(axis=1).all()
        assert sorted(each.letters) == sorted(each.letters.values())
    assert (found[0].rotation == np.eye(3)).all()
    assert not found[0].translation.any()


def test_numbers_of_equivalent_descriptions():
    """Indices of the normalisers of the International Tables, without rotoinversions and along free axes."""
    assert len(normalizer(225)) == 2  # Pm-3m with half the axis
    assert len(normalizer(227)) == 2
    assert len(normalizer(47)) == 8 * 6
    assert len(normalizer(62)) == 8
    assert len(normalizer(2)) == 8
    assert polar_axes(1) == (0, 1, 2)
    assert polar_axes(8) == (0, 2)
    assert polar_axes(33) == (2,)
    assert polar_axes(62) == ()


def test_the_canonical_description_does_not_depend_on_the_start():
    """Every equivalent description of zinc blende, of an orthorhombic and of a polar crystal gives the same one."""
    for crystal in (
        SymmetricCrystal(216, (5.41,), (Orbit("Zn", "c"), Orbit("S", "b"))),
        SymmetricCrystal(47, (4.0, 5.0, 3.0), (Orbit("Fe", "h"), Orbit("O", "q", (0.2,)), Orbit("S", "z", (0.1, 0.3)))),
        SymmetricCrystal(33, (5.0, 6.0, 7.0), (Orbit("Fe", "a", (0.1, 0.2, 0.3)), Orbit("O", "a", (0.3, 0.4, 0.9)))),
    ):
        all_found = list(equivalents(crystal))
        chosen = canonical(crystal)
        assert all(canonical(other) == chosen for other in all_found)
        for one, other in itertools.pairwise(all_found):
            assert MATCHER.fit(one.to_structure(), other.to_structure())
    assert canonical(SymmetricCrystal(216, (5.41,), (Orbit("Zn", "c"), Orbit("S", "b")))).orbits == (
        Orbit("Zn", "a"),
        Orbit("S", "c"),
    )


def test_a_distorted_crystal_is_idealised_within_the_tolerance():
    structure = rock_salt().perturb(0.02)
    crystal = SymmetricCrystal.from_structure(structure)
    assert crystal.spacegroup == 225
    assert SpacegroupAnalyzer(crystal.to_structure(), 1e-5).get_space_group_number() == 225


def test_real_crystals_are_reproduced(shared):
    with gzip.open(shared / "data/mp20_open/val.csv.gz", "rt") as file:
        rows = list(itertools.islice(csv.DictReader(file), 0, None, 10))
    assert len(rows) == 100
    for row in rows:
        structure = parse(Entry("", row["cif"])).structure
        crystal = SymmetricCrystal.from_structure(structure)
        assert crystal.spacegroup == int(row["spacegroup.number"])
        chosen = canonical(crystal)
        again = chosen.to_structure()
        assert StructureMatcher().fit(structure, again), row["material_id"]
        assert SpacegroupAnalyzer(again, 0.01).get_space_group_number() == crystal.spacegroup, row["material_id"]
        assert canonical(chosen) == chosen, row["material_id"]
