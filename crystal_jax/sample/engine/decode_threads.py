"""Runs several decode loops in threads that share one request queue, so that all cores have work.

A decode step on CPU is a chain of small operations, most of which keep one core busy; two chains keep two cores busy.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from queue import SimpleQueue
from typing import Generic, TypeVar

In = TypeVar("In")
Out = TypeVar("Out")

SLOTS_PER_THREAD = 32  # with fewer, the fixed cost of a step dominates


def decode_threads(rows: int, cores: int) -> int:
    """Returns how many decode threads to use for this many slots."""
    return max(1, min(cores, rows // SLOTS_PER_THREAD))


class _Shared(Generic[In]):
    """An iterator that several threads may advance, one at a time, until the stop event is set."""

    def __init__(self, items: Iterable[In], stop: threading.Event):
        self._items, self._lock, self._stop = iter(items), threading.Lock(), stop

    def __iter__(self) -> Iterator[In]:
        return self

    def __next__(self) -> In:
        with self._lock:
            if self._stop.is_set():
                raise StopIteration
            return next(self._items)


@dataclasses.dataclass(frozen=True)
class _Ended:
    """Marks the end of a thread, with the error if it failed."""

    error: BaseException | None = None


def run_threads(
    work: Callable[[Iterator[In], threading.Event], Iterator[Out]], items: Iterable[In], *, threads: int
) -> Generator[Out, None, None]:
    """Yields the results of `work`, in no particular order; each thread runs `work` on a share of the items.

    An error in a thread, or in `items`, stops all threads and is raised here. Closing this generator stops them, too:
    it sets the event, which `work` checks wherever it can stop, and waits for the threads. With several threads,
    results that the caller has not taken yet are queued.

    Args:
        work: Takes an iterator over items and the stop event; yields results.
        items: Items to distribute over the threads.
        threads: Number of threads; with 1, `work` runs in the calling thread.
    """
    stop = threading.Event()
    if threads == 1:
        yield from work(iter(items), stop)
        return
    shared, results = _Shared(items, stop), SimpleQueue[Out | _Ended]()

    def decode() -> None:
        error = None
        try:
            for result in work(shared, stop):
                results.put(result)
        except BaseException as raised:  # the consumer raises it again, where it can be caught
            error = raised
        results.put(_Ended(error))

    started: list[threading.Thread] = []
    try:
        for i in range(threads):
            # Daemon threads let a program exit even if its generator is never closed.
            thread = threading.Thread(target=decode, name=f"decode {i}", daemon=True)
            thread.start()
            started.append(thread)
        running = threads
        while running:
            result = results.get()
            if not isinstance(result, _Ended):
                yield result
            elif result.error is not None:
                raise result.error
            else:
                running -= 1
    finally:
        stop.set()
        for thread in started:
            thread.join()
