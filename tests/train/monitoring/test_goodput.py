import time

import pytest

from crystal_jax.train.monitoring import goodput
from crystal_jax.train.monitoring.goodput import GoodputTimer


@pytest.fixture
def now(monkeypatch):
    """A clock that is turned by hand: both of Python's, from second 1000 on."""
    at = [1000.0]
    monkeypatch.setattr(goodput.time, "perf_counter", lambda: at[0])
    monkeypatch.setattr(goodput.time, "time", lambda: at[0])
    return at


def test_what_is_not_training_is_told_apart(now):
    clock = GoodputTimer(started=990.0, productive=0.0)
    now[0] += 3
    with clock.span("data_wait"):
        now[0] += 1
    for _ in range(2):
        with clock.span("save"):
            now[0] += 0.5
    now[0] += 1
    assert clock.interval() == (4.0, {"data_wait": 1.0, "save": 1.0})
    assert clock.productive == 4.0
    assert clock.goodput() == 4 / 16  # ten seconds had passed before
    now[0] += 2
    assert clock.interval() == (2.0, {})
    assert clock.productive == 6.0


def test_earlier_parts_of_a_run_count(now):
    clock = GoodputTimer(started=0.0, productive=300.0)
    now[0] += 100
    clock.interval()
    assert clock.goodput() == 400 / 1100


def test_time_is_counted_when_what_is_timed_fails(now):
    clock = GoodputTimer(started=0.0, productive=0.0)

    def fail():
        with clock.span("save"):
            now[0] += 2
            raise OSError(28, "disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert clock.interval() == (0.0, {"save": 2.0})


def test_the_clocks_are_the_real_ones():
    clock = GoodputTimer(started=time.time(), productive=0.0)
    time.sleep(0.01)
    assert 0.01 <= clock.interval()[0] < 10
