"""Several loops in threads that share one queue, so that a core without work in one of them has some in another.

A decode step on CPU is a chain of small operations, most of which keep one core busy; two chains keep two.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from typing import Generic, TypeVar

In = TypeVar("In")
Out = TypeVar("Out")

FEWEST_ROWS = 32  # of a lane; with fewer, what a step does once for all rows is done too often


def lanes_for(rows: int, cores: int) -> int:
    """How many loops so many rows are worth."""
    return max(1, min(cores, rows // FEWEST_ROWS))


class _Shared(Generic[In]):
    """An iterator that several threads may ask, one at a time, until it is closed."""

    def __init__(self, items: Iterable[In]):
        self._items, self._lock, self.closed = iter(items), threading.Lock(), False

    def __iter__(self) -> Iterator[In]:
        return self

    def __next__(self) -> In:
        with self._lock:
            if self.closed:
                raise StopIteration
            return next(self._items)


@dataclasses.dataclass(frozen=True)
class _Ended:
    """A lane has no more to do, or failed."""

    error: BaseException | None = None


def side_by_side(work: Callable[[Iterator[In]], Iterator[Out]], items: Iterable[In], *, lanes: int) -> Iterator[Out]:
    """Yields what `work` makes of the items, in no particular order; each of several `work` takes some of them.

    An error in one of them, or in the items, ends all and is raised here. So does closing this generator; it waits for
    what they are at.
    """
    if lanes == 1:
        yield from work(iter(items))
        return
    shared, results = _Shared(items), SimpleQueue[Out | _Ended]()

    def lane() -> None:
        error = None
        try:
            for result in work(shared):
                results.put(result)
                if shared.closed:
                    break
        except BaseException as raised:  # it is raised again, where someone can catch it
            error = raised
        results.put(_Ended(error))

    # Daemons, so that a program whose generator is never closed can end.
    threads = [threading.Thread(target=lane, name=f"lane {i}", daemon=True) for i in range(lanes)]
    for thread in threads:
        thread.start()
    try:
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
        shared.closed = True
        for thread in threads:
            thread.join()
