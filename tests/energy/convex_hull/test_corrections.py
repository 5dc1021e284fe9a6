import pytest

from crystal_jax.energy.convex_hull.corrections import corrected_energy, hubbard_values
from crystal_jax.energy.sanity_check import known
from tests.energy.conftest import rock_salt


@pytest.mark.parametrize("compound", known(), ids=lambda compound: compound.formula)
def test_known_compounds(compound):
    atoms = len(compound.structure)
    assert corrected_energy(compound.structure, compound.raw * atoms) / atoms == pytest.approx(
        compound.corrected, abs=1e-4
    )


def test_u_is_of_transition_metals_in_oxides_and_fluorides():
    assert hubbard_values(rock_salt(4.3, "Fe", "O")) == {"Fe": 5.3}
    assert hubbard_values(rock_salt(4.3, "Fe", "S")) == {}
    assert hubbard_values(rock_salt(4.2, "Mg", "O")) == {}


def test_u_changes_the_correction():
    oxide = rock_salt(4.3, "Fe", "O")
    assert corrected_energy(oxide, -13.0) == pytest.approx(-13.0 - 2.256 - 0.687, abs=1e-3)  # Fe with U, oxide


def test_an_alloy_has_none():
    assert corrected_energy(rock_salt(5, "Cu", "Au"), -7.0) == -7.0
