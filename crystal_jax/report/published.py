"""Figures published on MP-20, to be shown beside an evaluation."""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """One row of the table: validities as fractions, Wasserstein distances in g/cm^3 and in elements."""

    model: str
    structural: float
    compositional: float
    density: float
    num_elements: float


# Gruver et al., "Fine-Tuned Language Models Generate Stable Inorganic Materials as Text", ICLR 2024, table 1:
# 10,000 samples each, drawn again until they parse; reference is the test split of MP-20.
PUBLISHED = (
    Published("CDVAE", 1.00, 0.867, 0.688, 1.43),
    Published("LLaMA-2 7B, τ = 1.0", 0.918, 0.879, 3.85, 0.96),
    Published("LLaMA-2 7B, τ = 0.7", 0.964, 0.933, 3.61, 1.06),
    Published("LLaMA-2 13B, τ = 1.0", 0.933, 0.900, 2.20, 0.05),
    Published("LLaMA-2 13B, τ = 0.7", 0.955, 0.924, 2.13, 0.10),
    Published("LLaMA-2 70B, τ = 1.0", 0.965, 0.863, 1.72, 0.55),
    Published("LLaMA-2 70B, τ = 0.7", 0.996, 0.954, 0.81, 0.44),
)
