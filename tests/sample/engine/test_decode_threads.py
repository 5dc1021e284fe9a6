import threading
import time

import pytest

from crystal_jax.sample.engine.decode_threads import SLOTS_PER_THREAD, decode_threads, run_threads


def doubled(items, stop):
    for item in items:
        time.sleep(0.001)
        yield 2 * item


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_item_is_worked_on_once(threads):
    assert sorted(run_threads(doubled, range(50), threads=threads)) == list(range(0, 100, 2))


def test_items_are_shared():
    """Both wait until the other one has an item."""
    both = threading.Barrier(2, timeout=10)

    def work(items, stop):
        for item in items:
            both.wait()
            yield item, threading.current_thread().name

    assert len({name for _, name in run_threads(work, range(2), threads=2)}) == 2


@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_of_one_ends_all(threads):
    def work(items, stop):
        for item in items:
            if item == 3:
                raise ValueError("item 3")
            yield item

    endless = iter(range(10**9))
    with pytest.raises(ValueError, match="item 3"):
        list(run_threads(work, endless, threads=threads))
    assert not threads_alive()


@pytest.mark.parametrize("threads", [1, 2])
def test_so_does_an_error_of_the_items(threads):
    def items():
        yield 1
        raise KeyError("second")

    with pytest.raises(KeyError, match="second"):
        list(run_threads(doubled, items(), threads=threads))
    assert not threads_alive()


def test_who_stops_listening_stops_the_work():
    taken = []

    def items():
        for i in range(10**9):
            taken.append(i)
            yield i

    results = run_threads(doubled, items(), threads=3)
    next(results)
    results.close()
    assert not threads_alive()
    number = len(taken)
    time.sleep(0.02)
    assert len(taken) == number < 1000


def test_who_is_at_a_long_item_is_told_to_stop():
    begun = threading.Event()

    def work(items, stop):
        for item in items:
            if item:
                begun.set()
                assert stop.wait(10)
                return
            yield item

    results = run_threads(work, range(10), threads=2)
    assert next(results) == 0
    assert begun.wait(10)
    results.close()
    assert not threads_alive()


def test_threads_for_slots_and_cores():
    rows = [1, *(number * SLOTS_PER_THREAD for number in (1, 2, 100))]
    assert [decode_threads(number, 4) for number in rows] == [1, 1, 2, 4]


def threads_alive():
    return [thread for thread in threading.enumerate() if thread.name.startswith("decode ")]
