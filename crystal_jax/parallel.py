"""One function over many items on all cores of this machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import joblib

In = TypeVar("In")
Out = TypeVar("Out")

_WORTH_A_PROCESS = 64  # items; for fewer, starting processes (a second or two each) takes longer than they save


def available_workers() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_in_order(function: Callable[[In], Out], items: Sequence[In], *, workers: int | None = None) -> Iterator[Out]:
    """Yields `function(item)` in the items' order, as soon as each is there.

    Args:
        function: of a module, so that other processes find it; so must be its results.
        items: what it is called with.
        workers: processes; by default one for each core. With one, or with few items, everything is done here.
    """
    workers = available_workers() if workers is None else workers
    if workers == 1 or len(items) < _WORTH_A_PROCESS:
        return map(function, items)
    # Chunks amortise the transport and stay small enough for an even load.
    size = max(1, min(16, len(items) // (8 * workers)))
    chunks = [items[begin : begin + size] for begin in range(0, len(items), size)]
    run = joblib.Parallel(n_jobs=workers, return_as="generator")
    return (
        result for results in run(joblib.delayed(_all_of)(function, chunk) for chunk in chunks) for result in results
    )


def _all_of(function: Callable[[In], Out], items: Sequence[In]) -> list[Out]:
    return [function(item) for item in items]
