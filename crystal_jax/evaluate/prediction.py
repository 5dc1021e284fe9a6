"""Crystal structure prediction: is the known structure of a composition among the samples made for it?

CDVAE's reconstruction metric and DiffCSP's for prediction: StructureMatcher at CDVAE's tolerances; the match rate is
the share of targets that some sample matches, the RMSE the mean over these of the smallest root mean square distance of
sites, in units of (volume / atoms)^(1/3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pymatgen.core import Structure
from pymatgen.core.structure_matcher import StructureMatcher
from tqdm import tqdm

from crystal_jax.errors import UserError
from crystal_jax.evaluate.novelty import LOOSE_MATCHER
from crystal_jax.evaluate.rate import Rate
from crystal_jax.quiet import quiet
from crystal_jax.structures import Sample

MATCHER = {name: value for name, value in LOOSE_MATCHER.items() if name != "scale"}


def assign(samples: Sequence[Sample], targets: Sequence[Sample]) -> list[list[int]]:
    """Which samples were made for which target: those of its name if all samples have names of targets, otherwise the
    first so many, the next so many, and so on.

    Raises:
        UserError: neither is possible.
    """
    places: dict[str, list[int]] = {target.name: [] for target in targets}
    if len(places) == len(targets) and all(sample.name in places for sample in samples):
        for i, sample in enumerate(samples):
            places[sample.name].append(i)
        return [places[target.name] for target in targets]
    each, rest = divmod(len(samples), max(1, len(targets)))
    if rest or not each:
        raise UserError(
            f"{len(samples)} samples do not belong to {len(targets)} targets: names differ, and there are not equally "
            "many for each"
        )
    return [list(range(t * each, (t + 1) * each)) for t in range(len(targets))]


@quiet()
def metrics_of(samples: Sequence[Sample], targets: Sequence[Sample], *, progress: bool = False) -> dict[str, Any]:
    """`match_rate` over all targets, and `match_rmse` over those that were matched.

    Raises:
        UserError: see `assign`.
    """
    groups = assign(samples, targets)
    best = [
        min((_distance(samples[i].structure, target.structure) for i in group), default=np.inf)
        for target, group in tqdm(
            list(zip(targets, groups, strict=True)), "targets", unit="crystal", disable=not progress
        )
    ]
    matched = [distance for distance in best if np.isfinite(distance)]
    return {
        "match_rate": Rate(len(matched), len(targets)).as_dict()
        | {"samples_each": len(samples) / max(1, len(targets))},
        "match_rmse": {"value": float(np.mean(matched)) if matched else None, "targets": len(matched)},
    }


def _distance(one: Structure | None, other: Structure | None) -> float:
    """The matcher's, infinite if they do not match."""
    if one is None or other is None:
        return np.inf
    try:
        found = StructureMatcher(**MATCHER).get_rms_dist(one, other)
    except (ValueError, ArithmeticError, IndexError, np.linalg.LinAlgError):
        return np.inf
    return float(found[0]) if found else np.inf
