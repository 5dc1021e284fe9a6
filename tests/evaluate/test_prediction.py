import numpy as np
import pytest

from crystal_jax.errors import UserError
from crystal_jax.evaluate.prediction import assign, check_compositions, metrics_of
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
    found = metrics_of(samples, targets, [None] * 5)
    assert found["match_rate"] == {
        "value": 2 / 3,
        "hits": 2,
        "total": 3,
        "samples_each": 5 / 3,
        "targets_without_their_formula": 1,
    }
    alone = metrics_of(named(("x", moved)), named(("y", cesium_chloride)), [None])
    distance = alone["match_rmse"]["value"]
    # 0.15 Å of each atom when the common shift is taken away, in units of (V/N)^(1/3).
    assert distance == pytest.approx(0.15 / (4.12 / 2 ** (1 / 3)), rel=1e-3)
    assert found["match_rmse"] == {"value": pytest.approx(distance / 2), "targets": 2}


def test_samples_belong_to_targets_by_name_or_by_order(salt):
    targets = named(("a", salt), ("b", salt))
    assert assign(named(("b", salt), ("a", salt)), targets, [0, 1]) == [[1], [0]]
    assert assign(named(*[(str(i), salt) for i in range(4)]), targets, [None] * 4) == [[0, 1], [2, 3]]
    with pytest.raises(UserError, match="3 samples do not belong to 2 targets"):
        assign(named(*[(str(i), salt) for i in range(3)]), targets, [None] * 3)


def test_samples_of_requests_are_dealt_round_robin(salt, cesium_chloride):
    """As 'crystal-jax sample --requests' writes them; dealt in blocks half of them would meet another target."""
    targets = named(("a", salt), ("b", cesium_chloride))
    samples = named(*[(str(i), (salt, cesium_chloride)[i % 2]) for i in range(6)])
    requests = [0, 1, 0, 1, 0, 1]
    assert assign(samples, targets, requests) == [[0, 2, 4], [1, 3, 5]]
    assert metrics_of(samples, targets, requests)["match_rate"]["value"] == 1
    with pytest.raises(UserError, match="a sample answers request 2, and there are 1 targets"):
        assign(samples, targets[:1], requests)


def test_targets_of_other_formulas_are_refused_or_counted(salt, cesium_chloride, capsys):
    samples = named(("0", salt), ("1", cesium_chloride))
    with pytest.raises(UserError, match=r"of 2 of 2 targets no sample has the formula \(target x is CsCl"):
        metrics_of(samples, named(("x", cesium_chloride), ("y", salt)), [0, 1])
    targets = named(("x", salt), ("y", salt))
    assert check_compositions(samples, targets, [[0], [1]]) == ["y"]
    assert metrics_of(samples, targets, [0, 1])["match_rate"]["targets_without_their_formula"] == 1
    assert "no sample has the formula of 1 of 2 targets: y" in capsys.readouterr().err


def test_nothing_matches(salt):
    stretched = salt.copy()
    stretched.translate_sites([0, 1], [0.3, 0.1, 0.2])
    found = metrics_of(named(("a", stretched)), named(("a", salt)), [None])
    assert found["match_rate"]["hits"] == 0
    assert found["match_rmse"]["value"] is None
    assert np.isfinite(found["match_rate"]["samples_each"])
