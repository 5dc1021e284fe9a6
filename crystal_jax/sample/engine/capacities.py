"""The cache capacities that a decode step is compiled for, on CPU.

There, the time of a step grows with the cache positions that its slots attend to, filled or not. Sequences start short,
so a cache starts small and grows when a sequence fills it. Each capacity is compiled separately: short texts have one.
"""

from __future__ import annotations

NUM_CAPACITIES = 3
# Positions of a completion up to which one capacity is enough: reading all of them takes a small part of a step.
SHORT = 160


def cache_capacities(prompt_tokens: int, room: int, *, grows: bool) -> tuple[int, ...]:
    """Returns the capacities, ascending; the last one holds the longest sequence.

    Args:
        prompt_tokens: Length of the longest prompt; part of every capacity.
        room: Positions for the longest completion.
        grows: Whether a cache may grow; if not, there is one capacity.
    """
    number = NUM_CAPACITIES if grows and room > SHORT else 1
    return tuple(prompt_tokens + -(-room * (i + 1) // number) for i in range(number))
