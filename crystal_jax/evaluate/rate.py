"""A fraction that keeps its denominator."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True)
class Rate:
    """`hits` of `total`, so that failures cannot drop out of a metric unseen."""

    hits: int
    total: int

    @classmethod
    def of(cls, verdicts: Iterable[bool]) -> Rate:
        """Counts the true ones."""
        verdicts = [bool(verdict) for verdict in verdicts]
        return cls(sum(verdicts), len(verdicts))

    @property
    def value(self) -> float | None:
        """The fraction in [0, 1], or None when there was nothing to judge."""
        return self.hits / self.total if self.total else None

    def as_dict(self) -> dict[str, float | int | None]:
        """What `metrics.json` holds."""
        return {"value": self.value, "hits": self.hits, "total": self.total}
