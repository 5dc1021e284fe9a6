import numpy as np
import pytest

from crystal_jax.errors import UserError
from crystal_jax.evaluate.metrics.prediction import assign, check_compositions, metrics_of
from crystal_jax.structures import Entry, parse


def named(*pairs):
    return [parse(Entry(name, structure.to(fmt="cif") if structure else "")) for name, structure in pairs]


def unsaid(number):
    """Entries that do not say which request they answer."""
    return [Entry("", "")] * number


def test_names_of_requests_come_before_their_numbers(salt, cesium_chloride):
    """The targets may be in another order than the requests were."""
    entries = [Entry("", "", request=i, request_name=name) for i, name in enumerate("ab")]
    samples = named(("0", salt), ("1", cesium_chloride))
    assert assign(samples, named(("b", cesium_chloride), ("a", salt)), entries) == [[1], [0]]


def test_blocks_of_other_formulas_are_refused(salt, cesium_chloride):
    """Samples that were written round robin, by a version that did not say so."""
    targets = named(("a", salt), ("b", cesium_chloride), ("c", cesium_chloride))
    samples = named(*[(str(i), (salt, cesium_chloride, cesium_chloride)[i % 3]) for i in range(9)])
    with pytest.raises(UserError, match="samples and targets do not belong together"):
        metrics_of([samples[i] for i in (1, 2, 0, 0, 3, 1, 6, 0, 3)], targets, unsaid(9))


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
    found = metrics_of(samples, targets, unsaid(5))
    assert found["match_rate"] == {
        "value": 2 / 3,
        "hits": 2,
        "total": 3,
        "samples_each": 5 / 3,
        "targets_without_their_formula": 1,
    }
    alone = metrics_of(named(("x", moved)), named(("y", cesium_chloride)), unsaid(1))
    distance = alone["match_rmse"]["value"]
    # 0.15 Å of each atom when the common shift is taken away, in units of (V/N)^(1/3).
    assert distance == pytest.approx(0.15 / (4.12 / 2 ** (1 / 3)), rel=1e-3)
    assert found["match_rmse"] == {"value": pytest.approx(distance / 2), "targets": 2}


def test_samples_belong_to_targets_by_name_or_by_order(salt):
    targets = named(("a", salt), ("b", salt))
    assert assign(named(("b", salt), ("a", salt)), targets, unsaid(2)) == [[1], [0]]
    assert assign(named(*[(str(i), salt) for i in range(4)]), targets, unsaid(4)) == [[0, 1], [2, 3]]
    with pytest.raises(UserError, match="3 samples do not belong to 2 targets"):
        assign(named(*[(str(i), salt) for i in range(3)]), targets, unsaid(3))


def test_samples_of_requests_are_dealt_round_robin(salt, cesium_chloride):
    """As 'crystal-jax sample --requests' writes them; dealt in blocks half of them would meet another target."""
    targets = named(("a", salt), ("b", cesium_chloride))
    samples = named(*[(str(i), (salt, cesium_chloride)[i % 2]) for i in range(6)])
    requests = [Entry("", "", request=i % 2) for i in range(6)]
    assert assign(samples, targets, requests) == [[0, 2, 4], [1, 3, 5]]
    assert metrics_of(samples, targets, requests)["match_rate"]["value"] == 1
    with pytest.raises(UserError, match="a sample answers request 2, and there are 1 targets"):
        assign(samples, targets[:1], requests)


def test_targets_of_other_formulas_are_refused_or_counted(salt, cesium_chloride, capsys):
    samples = named(("0", salt), ("1", cesium_chloride))
    both = [Entry("", "", request=0), Entry("", "", request=1)]
    with pytest.raises(UserError, match=r"2 of 2 samples have another formula than their target \(target x is CsCl"):
        metrics_of(samples, named(("x", cesium_chloride), ("y", salt)), both)
    targets = named(("x", salt), ("y", salt))
    assert check_compositions(samples, targets, [[0], [1]]) == ["y"]
    assert metrics_of(samples, targets, both)["match_rate"]["targets_without_their_formula"] == 1
    assert "no sample has the formula of 1 of 2 targets: y" in capsys.readouterr().err


def test_nothing_matches(salt):
    stretched = salt.copy()
    stretched.translate_sites([0, 1], [0.3, 0.1, 0.2])
    found = metrics_of(named(("a", stretched)), named(("a", salt)), unsaid(1))
    assert found["match_rate"]["hits"] == 0
    assert found["match_rmse"]["value"] is None
    assert np.isfinite(found["match_rate"]["samples_each"])
