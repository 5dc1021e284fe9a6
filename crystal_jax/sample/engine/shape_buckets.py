"""How many rows, and how much room in each, a step is computed for.

A step on CPU takes as long as the rows it computes, wanted or not, and as the positions that they attend to, filled or
not. Texts begin short, and at the end of a job few are left: the scheduler then moves them to smaller arrays. Each pair
of sizes is a program of its own, so there are few.
"""

from __future__ import annotations

import dataclasses

MIN_SLOTS = 16  # below, what a step does once for all rows is much of it
NUM_CAPACITIES = 3


@dataclasses.dataclass(frozen=True)
class ShapeBuckets:
    """What there is to choose from.

    Attributes:
        rows: Numbers of rows, falling.
        capacities: Positions of a row, rising; the last holds the longest text.
    """

    rows: tuple[int, ...]
    capacities: tuple[int, ...]

    def rows_for(self, texts: int) -> int:
        """The fewest rows that hold so many texts."""
        return min(rows for rows in self.rows if rows >= texts)

    def capacity_for(self, positions: int) -> int:
        """The smallest capacity that holds so many positions."""
        return min(capacity for capacity in self.capacities if capacity >= positions)


def single(rows: int, capacity: int) -> ShapeBuckets:
    """No choice."""
    return ShapeBuckets((rows,), (capacity,))


def buckets(rows: int, *, prompt_tokens: int, room: int) -> ShapeBuckets:
    """Rows halved again and again; capacities for the longest prompt and equal parts of the room for a text."""
    halves = [rows]
    while halves[-1] >= 2 * MIN_SLOTS:
        halves.append(-(-halves[-1] // 2))
    parts = (prompt_tokens + -(-room * (i + 1) // NUM_CAPACITIES) for i in range(NUM_CAPACITIES))
    return ShapeBuckets(tuple(halves), tuple(parts))
