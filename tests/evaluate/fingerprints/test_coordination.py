import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure
from pymatgen.core.local_env import LocalStructOrderParams

from crystal_jax.evaluate.fingerprints import coordination
from crystal_jax.evaluate.fingerprints.coordination import (
    LENGTH,
    NoFingerprint,
    bond_weights,
    coordination_probabilities,
    structure_fingerprint,
)
from crystal_jax.evaluate.fingerprints.order_parameters import MOTIFS, _definition, order_parameters
from tests.evaluate.golden_values import golden_structures

BODY_CENTRED = 1 + sum(len(MOTIFS[n]) + 1 for n in range(1, 8))  # its place in the fingerprint


@pytest.mark.parametrize(("name", "structure", "expected"), golden_structures())
def test_equals_matminer(name, structure, expected):
    found = structure_fingerprint(structure)
    # This parameter takes each pair of neighbours once, in an order that is left to rounding where weights are equal.
    both = [np.delete(x, BODY_CENTRED) for x in (found, expected)]
    np.testing.assert_allclose(both[0], both[1], rtol=0, atol=1e-9)
    assert abs(found - expected).max() < 0.05


def test_golden_values_reach_every_motif():
    reached = np.any([expected > 0 for _, _, expected in golden_structures()], axis=0)
    assert reached[: sum(len(names) + 1 for names in MOTIFS.values())].all()


@settings(max_examples=20)
@given(count=st.sampled_from(sorted(MOTIFS)), seed=st.integers(0, 10_000))
def test_order_parameters_equal_pymatgens(count, seed):
    vectors = np.random.default_rng(seed).normal(size=(count, 3)) * 2
    molecule = Structure(Lattice.cubic(100), ["H"] * (count + 1), [[0, 0, 0], *vectors], coords_are_cartesian=True)
    sites = list(molecule)
    for site, vector in zip(sites[1:], vectors, strict=True):
        site.coords = vector
    for motif, value in zip(MOTIFS[count], order_parameters(vectors), strict=True):
        kind, constants = _definition(count, motif)
        theirs = LocalStructOrderParams([kind], parameters=[constants or None])
        (expected,) = theirs.get_order_parameters(sites, 0, indices_neighs=list(range(1, count + 1)))
        assert value == pytest.approx(expected or 0, abs=1e-9), motif


def test_perfect_motifs_are_perfect():
    axes = np.vstack([np.eye(3), -np.eye(3)])
    assert order_parameters(axes)[1] == pytest.approx(1, abs=1e-9)  # octahedral
    corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    assert order_parameters(corners)[1] == pytest.approx(1, abs=1e-6)  # tetrahedral
    assert order_parameters(np.ones((13, 3))) == []


def test_probabilities_share_a_quarter_circle():
    found = coordination_probabilities(np.array([1.0, 1.0, 0.5, 0.2]))
    assert list(found) == [2, 3, 4]
    assert sum(found.values()) == pytest.approx(1)
    half = 0.5 * (0.5 * math.sqrt(0.75) + math.atan(0.5 / math.sqrt(0.75)))
    assert found[2] == pytest.approx((math.pi / 4 - half) / (math.pi / 4))


def test_a_site_of_rock_salt_has_six_bonds(salt):
    vectors, weights = bond_weights(salt, 0)
    assert weights[:6].tolist() == [1] * 6
    assert np.linalg.norm(vectors[:6], axis=1) == pytest.approx([2.82] * 6)
    fingerprint = structure_fingerprint(salt)
    assert fingerprint.shape == (LENGTH,) == (61,)


@settings(max_examples=5)
@given(shift=st.tuples(*[st.floats(0, 1)] * 3))
def test_does_not_change_when_moved(salt_like, shift):
    moved = salt_like.copy()
    moved.translate_sites(range(len(moved)), shift)
    np.testing.assert_allclose(structure_fingerprint(moved), structure_fingerprint(salt_like), atol=1e-6)


@pytest.fixture(scope="module")
def salt_like():
    return Structure(
        Lattice.from_parameters(3.8, 4.1, 4.4, 84, 97, 91),
        ["Na", "Cl", "O"],
        [[0, 0, 0], [0.52, 0.48, 0.5], [0.5, 0.03, 0.07]],
    )


def test_oxidation_states_do_not_matter(salt):
    charged = salt.copy()
    charged.add_oxidation_state_by_element({"Na": 1, "Cl": -1})
    np.testing.assert_array_equal(structure_fingerprint(charged), structure_fingerprint(salt))


def test_one_atom_in_its_cell():
    assert structure_fingerprint(Structure(Lattice.cubic(2.86), ["Fe"], [[0, 0, 0]])).sum() > 1


def test_a_single_atom_far_from_its_images_still_has_a_cell():
    assert structure_fingerprint(Structure(Lattice.cubic(9), ["Cs"], [[0, 0, 0]])).shape == (61,)


def test_absurdly_dense_crystals_are_refused(monkeypatch, salt):
    monkeypatch.setattr(coordination, "MAX_POINTS", 10)
    with pytest.raises(NoFingerprint, match="more than 10 atoms within 7 Å"):
        structure_fingerprint(salt)
