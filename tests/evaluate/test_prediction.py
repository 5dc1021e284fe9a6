import numpy as np
import pytest

from crystal_jax.errors import UserError
from crystal_jax.evaluate.prediction import assign, metrics_of
from crystal_jax.structures import Entry, parse


def named(*pairs):
    return [parse(Entry(name, structure.to(fmt="cif") if structure else "")) for name, structure in pairs]


@pytest.fixture
def moved(cesium_chloride):
    """One of two atoms 0.3 Å off."""
    other = cesium_chloride.copy()
    other.translate_sites([0], [0.3 / 4.12, 0, 0])
    other.translate_sites([0, 1], [0.3, 0.1, 0.7])
    return other


def test_the_best_of_several_counts(salt, cesium_chloride, moved):
    targets = named(("a", salt), ("b", cesium_chloride), ("c", cesium_chloride))
    samples = named(("a", moved), ("a", salt), ("b", salt), ("c", None), ("c", moved))
    found = metrics_of(samples, targets)
    assert found["match_rate"] == {"value": 2 / 3, "hits": 2, "total": 3, "samples_each": 5 / 3}
    alone = metrics_of(named(("x", moved)), named(("y", cesium_chloride)))
    distance = alone["match_rmse"]["value"]
    # 0.15 Å of each atom when the common shift is taken away, in units of (V/N)^(1/3).
    assert distance == pytest.approx(0.15 / (4.12 / 2 ** (1 / 3)), rel=1e-3)
    assert found["match_rmse"] == {"value": pytest.approx(distance / 2), "targets": 2}


def test_samples_belong_to_targets_by_name_or_by_order(salt):
    targets = named(("a", salt), ("b", salt))
    assert assign(named(("b", salt), ("a", salt)), targets) == [[1], [0]]
    assert assign(named(*[(str(i), salt) for i in range(4)]), targets) == [[0, 1], [2, 3]]
    with pytest.raises(UserError, match="3 samples do not belong to 2 targets"):
        assign(named(*[(str(i), salt) for i in range(3)]), targets)


def test_nothing_matches(salt, cesium_chloride):
    found = metrics_of(named(("a", cesium_chloride)), named(("a", salt)))
    assert found["match_rate"]["hits"] == 0
    assert found["match_rmse"]["value"] is None
    assert np.isfinite(found["match_rate"]["samples_each"])
