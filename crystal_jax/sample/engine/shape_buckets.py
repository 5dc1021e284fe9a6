"""Shape buckets: the numbers of slots and the cache capacities for which a decode step is compiled.

On CPU, the time of a step grows with the number of slots, free or not, and with the cache positions that they attend
to, filled or not. Sequences start short, and few are left at the end of a run: the scheduler then moves them to smaller
arrays. Each pair of sizes is compiled separately, so there are few of them.
"""

from __future__ import annotations

import dataclasses

MIN_SLOTS = 16  # with fewer, the fixed cost of a step dominates
NUM_CAPACITIES = 3


@dataclasses.dataclass(frozen=True)
class ShapeBuckets:
    """The sizes to choose from.

    Attributes:
        rows: Numbers of slots, descending.
        capacities: Cache positions per slot, ascending; the last one holds the longest sequence.
    """

    rows: tuple[int, ...]
    capacities: tuple[int, ...]

    def rows_for(self, texts: int) -> int:
        """Returns the smallest number of slots that holds this many sequences."""
        return min(rows for rows in self.rows if rows >= texts)

    def capacity_for(self, positions: int) -> int:
        """Returns the smallest capacity that holds this many positions."""
        return min(capacity for capacity in self.capacities if capacity >= positions)


def single(rows: int, capacity: int) -> ShapeBuckets:
    """Returns one bucket only."""
    return ShapeBuckets((rows,), (capacity,))


def buckets(rows: int, *, prompt_tokens: int, room: int) -> ShapeBuckets:
    """Returns buckets that halve the slots repeatedly and divide the room for a completion into equal parts.

    Args:
        rows: The largest number of slots.
        prompt_tokens: Length of the longest prompt; part of every capacity.
        room: Positions for the longest completion.
    """
    halves = [rows]
    while halves[-1] >= 2 * MIN_SLOTS:
        halves.append(-(-halves[-1] // 2))
    parts = (prompt_tokens + -(-room * (i + 1) // NUM_CAPACITIES) for i in range(NUM_CAPACITIES))
    return ShapeBuckets(tuple(halves), tuple(parts))
