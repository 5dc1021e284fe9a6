"""Crystals of known materials, built from the structures of others."""

import pytest
from pymatgen.core import Lattice, Structure

from crystal_jax.energy.convex_hull import known_materials
from crystal_jax.energy.convex_hull.known_materials import KnownCrystal, KnownMaterials, reduced
from crystal_jax.errors import UserError
from crystal_jax.evaluate.chemistry.symmetry import spacegroup
from crystal_jax.hull import substitution
from crystal_jax.hull.substitution import Prototype, PrototypeTable, substituted_crystals
from crystal_jax.structures import parse


def of_group(group, a, species, positions):
    return Structure.from_spacegroup(group, Lattice.cubic(a), species, positions)


@pytest.fixture
def known():
    """Two rock salts, a caesium chloride, and a perovskite."""
    corner, middle, face = [0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0]
    return [
        ("salt", of_group("Fm-3m", 5.64, ["Na", "Cl"], [corner, middle])),
        ("galena", of_group("Fm-3m", 5.94, ["Pb", "S"], [corner, middle])),
        ("chloride", of_group("Pm-3m", 4.12, ["Cs", "Cl"], [corner, middle])),
        ("perovskite", of_group("Pm-3m", 3.9, ["Sr", "Ti", "O"], [corner, middle, face])),
    ]


@pytest.fixture
def table(known):
    return PrototypeTable(Prototype(name, structure, spacegroup(structure)) for name, structure in known)


def test_the_most_similar_elements_come_first(table):
    found = list(table.substituted(reduced({"K": 1, "Br": 1}), 225, at_most=9))
    assert [name for name, _ in found] == ["salt", "chloride", "galena"]
    # One of the space group first, however different its elements are; then those of any group.
    assert [name for name, _ in table.substituted(reduced({"Rb": 1, "Cl": 1}), 225, at_most=2)] == ["salt", "chloride"]
    assert [name for name, _ in table.substituted(reduced({"Ge": 1, "S": 1}), 221, at_most=2)] == ["chloride", "galena"]
    structure = found[0][1]
    assert structure.composition.reduced_formula == "KBr"
    assert spacegroup(structure) == 225
    assert structure.volume ** (1 / 3) == pytest.approx(6.60, abs=0.5)  # as measured
    assert [name for name, _ in table.substituted(reduced({"K": 1, "Br": 1}), 225, at_most=1)] == ["salt"]


def test_equal_numbers_of_atoms_go_to_the_similar_element(table):
    """Ba and Zr could be on either site of a perovskite; strontium is barium's neighbour."""
    [(name, structure)] = table.substituted(reduced({"Zr": 1, "Ba": 1, "O": 3}), 221, at_most=9)
    assert name == "perovskite"
    center = next(site for site in structure if site.specie.symbol == "Zr")
    assert sorted({neighbor.specie.symbol for neighbor in structure.get_neighbors(center, 2.4)}) == ["O"]


def test_no_crystal_without_its_group_and_numbers(table):
    assert not list(table.substituted(reduced({"K": 1, "Br": 1}), 216, at_most=9))
    assert not list(table.substituted(reduced({"K": 2, "Br": 1}), 225, at_most=9))
    # A material is not made of itself.
    assert [name for name, _ in table.substituted(reduced({"Na": 1, "Cl": 1}), 225, at_most=1)] == ["galena"]


def test_stable_compounds_that_are_missing_are_built(known, monkeypatch):
    crystals = {
        "NaCl": [KnownCrystal(0.0, 225)],
        "KBr": [KnownCrystal(0.0, 225), KnownCrystal(0.1, 221)],
        "BaZrO3": [KnownCrystal(0.0, 221)],
        "CaO": [KnownCrystal(0.02, 225)],
        "K": [KnownCrystal(0.0, 229)],
    }
    monkeypatch.setattr(substitution, "load_known_materials", lambda **_: KnownMaterials(crystals, "a list"))
    built = substituted_crystals(known, elements=None, at_most=1, workers=1)
    assert sorted(entry.name for entry in built) == ["BaZrO3 as perovskite", "KBr as salt"]
    assert all(parse(entry).structure is not None for entry in built)
    [only] = substituted_crystals(known, elements=frozenset({"K", "Br"}), at_most=1, workers=1)
    assert only.name == "KBr as salt"


def test_without_the_list(known, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CRYSTAL_JAX_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="--num_prototypes needs the Materials Project's formulas"):
        substituted_crystals(known, elements=None, at_most=1, workers=1)
    assert known_materials.FILES.requirement in capsys.readouterr().err
