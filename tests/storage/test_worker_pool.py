import warnings

import pytest

from crystal_jax.errors import UserError
from crystal_jax.storage import worker_pool as parallel
from crystal_jax.storage.worker_pool import map_in_order

DEADLY = "__import__('os')._exit(3)"


@pytest.fixture(autouse=True)
def _always_in_processes(monkeypatch):
    monkeypatch.setattr(parallel, "_WORTH_A_PROCESS", 1)


def test_results_are_in_order():
    items = [f"{i} ** 2" for i in range(50)]
    assert list(map_in_order(eval, items, workers=2)) == [i**2 for i in range(50)]
    assert list(map_in_order(eval, items, workers=1)) == [i**2 for i in range(50)]


def test_a_process_that_dies_costs_one_item():
    items = [str(i) for i in range(40)]
    items[17] = items[31] = DEADLY
    found = list(map_in_order(eval, items, workers=2, lost=len))
    assert found == [len(DEADLY) if i in (17, 31) else i for i in range(40)]


def test_without_a_substitute_the_item_is_named():
    with pytest.raises(UserError, match=r"a process died on __import__\('os'\)"):
        list(map_in_order(eval, ["1", DEADLY, "2"], workers=2))


def test_an_error_of_the_function_is_raised():
    with pytest.raises(ZeroDivisionError):
        list(map_in_order(eval, ["1", "1 / 0"], workers=2))


def test_a_caller_may_have_enough():
    results = map_in_order(eval, [str(i) for i in range(500)], workers=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
        results.close()
    assert list(map_in_order(eval, ["1", "2"], workers=2)) == [1, 2]
