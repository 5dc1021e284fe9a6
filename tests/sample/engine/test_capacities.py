from crystal_jax.sample.engine.capacities import SHORT, cache_capacities


def test_the_last_capacity_holds_the_longest_sequence():
    assert cache_capacities(50, 300, grows=True) == (150, 250, 350)
    assert cache_capacities(50, 301, grows=True) == (151, 251, 351)


def test_short_sequences_and_other_devices_have_one():
    assert cache_capacities(50, SHORT, grows=True) == (50 + SHORT,)
    assert cache_capacities(50, 300, grows=False) == (350,)
