"""Maps a function over many items on all cores of this machine."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TypeVar

import joblib
from joblib.externals.loky import ProcessPoolExecutor
from joblib.externals.loky.process_executor import BrokenProcessPool

from crystal_jax.errors import UserError

In = TypeVar("In")
Out = TypeVar("Out")

_WORTH_A_PROCESS = 64  # items; for fewer, starting processes (one or two seconds each) costs more time than it saves


def available_workers() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_in_order(
    function: Callable[[In], Out],
    items: Sequence[In],
    *,
    workers: int | None = None,
    lost: Callable[[In], Out] | None = None,
) -> Generator[Out, None, None]:
    """Yields `function(item)` in the order of the items, each as soon as it is ready.

    If a process dies (compiled code may crash on a crystal), its items are computed again one at a time in a process of
    their own, so only the item that kills it is lost.

    Args:
        function: module-level function, so that other processes can import it; its results must be picklable.
        items: arguments of the calls.
        workers: processes; by default one per core. With one worker, or with few items, all calls run in this process.
        lost: called in this process with an item that killed its worker; its return value is yielded instead.

    Raises:
        UserError: a process died, and `lost` is not given.
    """
    workers = available_workers() if workers is None else workers
    if workers == 1 or len(items) < _WORTH_A_PROCESS:
        yield from map(function, items)
        return
    # Chunks amortise the transfer and are small enough for an even load.
    size = max(1, min(16, len(items) // (8 * workers)))
    chunks = [items[begin : begin + size] for begin in range(0, len(items), size)]
    done = 0
    while done < len(chunks):
        results = joblib.Parallel(n_jobs=workers, return_as="generator")(
            joblib.delayed(_all_of)(function, chunk) for chunk in chunks[done:]
        )
        try:
            for some in results:
                done += 1
                yield from some
        except BrokenProcessPool:
            yield from _one_by_one(function, chunks[done], lost)
            done += 1
        finally:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # joblib warns if the caller stops early
                results.close()


def _one_by_one(function: Callable[[In], Out], items: Sequence[In], lost: Callable[[In], Out] | None) -> Iterator[Out]:
    pool = ProcessPoolExecutor(max_workers=1)
    try:
        for item in items:
            try:
                yield pool.submit(function, item).result()
            except BrokenProcessPool as error:
                pool = ProcessPoolExecutor(max_workers=1)
                if lost is None:
                    name = getattr(item, "name", None) or str(item)[:60]
                    raise UserError(f"a process died on {name}; remove it from the input") from error
                yield lost(item)
    finally:
        pool.shutdown()


def _all_of(function: Callable[[In], Out], items: Sequence[In]) -> list[Out]:
    return [function(item) for item in items]
