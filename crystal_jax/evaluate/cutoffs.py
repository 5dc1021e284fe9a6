"""Published cut-offs of fingerprint distances; nothing heavy is imported here."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Cutoffs:
    """Largest distances at which a crystal is covered, in the units of the fingerprints."""

    structure: float
    composition: float


# CDVAE, `compute_metrics.py`.
CUTOFFS = {
    "mp20": Cutoffs(0.4, 10.0),
    "perov5": Cutoffs(0.2, 4.0),
    "carbon24": Cutoffs(0.2, 4.0),
}
# crystal-text-llm, `basic_eval.py`: a crystal is new if it is further than this from every training crystal.
NOVELTY = Cutoffs(0.1, 2.0)
