import pytest

from crystal_jax.evaluate.metrics.rate import Rate


def test_a_rate_keeps_its_denominator():
    rate = Rate.of([True, False, True, False])
    assert (rate.hits, rate.total, rate.value) == (2, 4, pytest.approx(0.5))
    assert rate.as_dict() == {"value": 0.5, "hits": 2, "total": 4}


def test_a_rate_of_nothing_has_no_value():
    assert Rate.of([]).value is None
