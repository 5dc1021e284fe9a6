"""Rates that keep their denominators."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True)
class Rate:
    """Fraction `hits` of `total`. The denominator is kept, so that failures cannot silently drop out of a metric."""

    hits: int
    total: int

    @classmethod
    def of(cls, verdicts: Iterable[bool]) -> Rate:
        """Counts the true values."""
        verdicts = [bool(verdict) for verdict in verdicts]
        return cls(sum(verdicts), len(verdicts))

    @property
    def value(self) -> float | None:
        """Fraction in [0, 1], or None if the denominator is 0."""
        return self.hits / self.total if self.total else None

    def as_dict(self) -> dict[str, float | int | None]:
        """Returns the rate as `metrics.json` holds it."""
        return {"value": self.value, "hits": self.hits, "total": self.total}
