import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure

from crystal_jax.evaluate.validity import structural_fault


def test_real_crystals_are_sound(salt, cesium_chloride):
    assert structural_fault(salt) is None
    assert structural_fault(cesium_chloride) is None


@pytest.mark.parametrize(("distance", "sound"), [(0.49, False), (0.51, True)])
def test_least_distance(distance, sound):
    pair = Structure(Lattice.cubic(5), ["C", "C"], [[0, 0, 0], [distance / 5, 0, 0]])
    assert (structural_fault(pair) is None) == sound


@settings(max_examples=50, deadline=None)
@given(shift=st.tuples(*[st.floats(0, 1)] * 3))
def test_distances_cross_the_borders_of_the_cell(shift):
    pair = Structure(Lattice.cubic(5), ["C", "C"], np.array([[0, 0, 0], [0.95, 0.05, 0]]) + np.array(shift))
    assert structural_fault(pair) == "two atoms closer than 0.5 Å"


def test_an_atom_is_not_compared_with_its_own_images():
    assert structural_fault(Structure(Lattice.cubic(0.47), ["H"], [[0, 0, 0]])) is None


def test_two_atoms_in_one_place():
    assert structural_fault(Structure(Lattice.cubic(4), ["H", "H"], [[0, 0, 0]] * 2)) == "two atoms closer than 0.5 Å"


def test_least_volume():
    assert structural_fault(Structure(Lattice.cubic(0.46), ["H"], [[0, 0, 0]])) == "cell volume below 0.1 Å^3"


def test_flat_cell_is_a_fault_and_not_a_crash():
    flat = Structure(Lattice.from_parameters(4, 4, 4, 120, 120, 120), ["H", "He"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    assert structural_fault(flat) is not None
