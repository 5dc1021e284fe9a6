import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystal_jax.evaluate.fingerprints import coverage as module
from crystal_jax.evaluate.fingerprints.coverage import CUTOFFS, Cutoffs, coverage, diversity, nearest
from crystal_jax.evaluate.fingerprints.fingerprints import Fingerprints


def prints(count, seed, dimensions=3):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(count, dimensions)), 5 * rng.normal(size=(count, dimensions))
    return Fingerprints(*rows, np.arange(count), {})


def straight(generated, real, cutoffs, num_generated):
    """The definition of CDVAE, crystal by crystal."""

    def closest(row, others):
        return min(float(np.sqrt(((row - other) ** 2).sum())) for other in others)

    found = {}
    for name, of, among, total in (
        ("recall", real, generated, len(real)),
        ("precision", generated, real, num_generated),
    ):
        structure = [closest(row, among.structure) for row in of.structure]
        composition = [closest(row, among.composition) for row in of.composition]
        near = zip(structure, composition, strict=True)
        hits = sum(s <= cutoffs.structure and c <= cutoffs.composition for s, c in near)
        found[f"coverage_{name}"] = hits / total
        found[f"amsd_{name}"] = sum(structure) / len(of)
        found[f"amcd_{name}"] = sum(composition) / len(of)
    return found


@settings(max_examples=25)
@given(sizes=st.tuples(st.integers(1, 30), st.integers(1, 30)), seed=st.integers(0, 999))
def test_equals_a_straight_implementation(sizes, seed):
    generated, real = prints(sizes[0], seed), prints(sizes[1], seed + 1)
    cutoffs = Cutoffs(1.0, 5.0)
    found = coverage(generated, real, cutoffs, num_generated=40)
    for name, expected in straight(generated, real, cutoffs, 40).items():
        assert found[name]["value"] == pytest.approx(expected, abs=1e-9), name


def test_neighbours_by_structure_and_by_composition_may_differ():
    """The one real crystal is covered by two generated ones, neither of which covers it alone."""
    real = Fingerprints(np.zeros((1, 2)), np.zeros((1, 2)), np.arange(1), {})
    generated = Fingerprints(np.array([[0, 0], [9, 9]]), np.array([[99, 99], [0, 0]]), np.arange(2), {})
    found = coverage(generated, real, CUTOFFS["mp20"], num_generated=2)
    assert found["coverage_recall"] == {"value": 1.0, "hits": 1, "total": 1}
    assert found["coverage_precision"] == {"value": 0.0, "hits": 0, "total": 2}
    assert nearest(real, generated).by_structure.tolist() == [0]
    assert nearest(real, generated).by_composition.tolist() == [1]


def test_a_set_covers_itself():
    some = prints(7, 0)
    found = coverage(some, some, CUTOFFS["carbon24"], num_generated=7)
    assert (found["coverage_recall"]["value"], found["coverage_precision"]["value"]) == (1, 1)
    assert found["amsd_recall"]["value"] == pytest.approx(0, abs=1e-9)


def test_nothing_covers_nothing():
    found = coverage(prints(0, 0), prints(3, 0), CUTOFFS["mp20"], num_generated=5)
    assert found["coverage_recall"] == {"value": 0.0, "hits": 0, "total": 3}
    assert found["coverage_precision"] == {"value": 0.0, "hits": 0, "total": 5}
    assert found["amsd_recall"]["value"] is None
    assert found["amsd_precision"]["value"] is None


def test_diversity_by_hand(monkeypatch):
    points = np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]])
    assert diversity(points) == pytest.approx(10 / 3)
    monkeypatch.setattr(module, "_ROWS_AT_ONCE", 2)
    assert diversity(points) == pytest.approx(10 / 3)
    assert diversity(points[:1]) is None
