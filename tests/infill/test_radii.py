import pytest
from pymatgen.core import Element

from crystal_jax.infill.radii import elements_of_similar_radius, radius_difference


def test_radii_are_shannons_crystal_radii():
    assert float(Element("Na").ionic_radii[1]) == 1.16
    assert float(Element("O").ionic_radii[-2]) == 1.26


def test_the_nearest_shared_state_decides():
    # Fe has 2+ and 3+, Mg only 2+: 0.92 and 0.86 Å.
    assert radius_difference("Fe", "Mg") == pytest.approx(0.06)
    assert radius_difference("Na", "O") is None  # 1+ and 2-


def test_swaps_share_a_state_and_lie_within_the_tolerance():
    found = elements_of_similar_radius("Fe")
    assert {"Mg", "Mn", "Co", "Ni", "Ga"} <= set(found)
    assert not {"Fe", "Na", "O", "Ba", "H"} & set(found)
    differences = [radius_difference("Fe", other) for other in found]
    assert differences == sorted(differences)
    assert differences[-1] < 0.1
    assert "Fe" in elements_of_similar_radius("Mg")  # the rule has no direction
    assert set(elements_of_similar_radius("Fe", tolerance=0.02)) < set(found)
    assert elements_of_similar_radius("H") == ()
