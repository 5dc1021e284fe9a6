"""Several loops in threads that share one queue, so that a core without work in one of them has some in another.

A decode step on CPU is a chain of small operations, most of which keep one core busy; two chains keep two.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from queue import SimpleQueue
from typing import Generic, TypeVar

In = TypeVar("In")
Out = TypeVar("Out")

SLOTS_PER_THREAD = 32  # with fewer, what a step does once for all rows is done too often


def decode_threads(rows: int, cores: int) -> int:
    """How many loops so many rows are worth."""
    return max(1, min(cores, rows // SLOTS_PER_THREAD))


class _Shared(Generic[In]):
    """An iterator that several threads may ask, one at a time, until they are to stop."""

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
    """A lane has no more to do, or failed."""

    error: BaseException | None = None


def run_threads(
    work: Callable[[Iterator[In], threading.Event], Iterator[Out]], items: Iterable[In], *, lanes: int
) -> Generator[Out, None, None]:
    """Yields what `work` makes of the items, in no particular order; each of several `work` takes some of them.

    An error in one of them, or in the items, ends all and is raised here. So does closing this generator: the event is
    then set, which `work` looks at as often as it can stop, and this waits until it does. Results that nobody asks for
    are kept.
    """
    stop = threading.Event()
    if lanes == 1:
        yield from work(iter(items), stop)
        return
    shared, results = _Shared(items, stop), SimpleQueue[Out | _Ended]()

    def lane() -> None:
        error = None
        try:
            for result in work(shared, stop):
                results.put(result)
        except BaseException as raised:  # it is raised again, where someone can catch it
            error = raised
        results.put(_Ended(error))

    threads: list[threading.Thread] = []
    try:
        for i in range(lanes):
            # Daemons, so that a program whose generator is never closed can end.
            thread = threading.Thread(target=lane, name=f"lane {i}", daemon=True)
            thread.start()
            threads.append(thread)
        running = lanes
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
        for thread in threads:
            thread.join()
