"""Figures published on MP-20, for comparison with an evaluation."""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """Row of published figures: rates as fractions, Wasserstein distances in g/cm^3 and in elements; None if not
    published.
    """

    model: str
    structural: float
    compositional: float
    recall: float
    precision: float
    density: float
    num_elements: float
    metastable: float | None = None
    stable: float | None = None


# Gruver et al., "Fine-Tuned Language Models Generate Stable Inorganic Materials as Text", ICLR 2024, table 1:
# 10,000 samples each, resampled until they parse; the reference is the test split of MP-20; metastable below 0.1
# eV/atom by M3GNet, stable below 0 by DFT. LM-CH and LM-AC: the same authors' evaluator, `basic_eval.py`.
PUBLISHED = (
    Published("CDVAE", 1.00, 0.867, 0.991, 0.995, 0.688, 1.43, 0.288, 0.054),
    Published("LM-CH", 0.8481, 0.8355, 0.9925, 0.9789, 0.864, 0.132),
    Published("LM-AC", 0.9581, 0.8887, 0.996, 0.9855, 0.696, 0.092),
    Published("LLaMA-2 7B, τ = 1.0", 0.918, 0.879, 0.969, 0.960, 3.85, 0.96, 0.351, 0.067),
    Published("LLaMA-2 7B, τ = 0.7", 0.964, 0.933, 0.911, 0.949, 3.61, 1.06, 0.350, 0.062),
    Published("LLaMA-2 13B, τ = 1.0", 0.933, 0.900, 0.946, 0.988, 2.20, 0.05, 0.334, 0.087),
    Published("LLaMA-2 13B, τ = 0.7", 0.955, 0.924, 0.889, 0.979, 2.13, 0.10, 0.380, 0.144),
    Published("LLaMA-2 70B, τ = 1.0", 0.965, 0.863, 0.968, 0.983, 1.72, 0.55, 0.354, 0.100),
    Published("LLaMA-2 70B, τ = 0.7", 0.996, 0.954, 0.858, 0.989, 0.81, 0.44, 0.498, 0.106),
)
