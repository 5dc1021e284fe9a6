"""Measures crystal structure prediction: how often samples for a composition include its known structure.

These are CDVAE's reconstruction metric and DiffCSP's prediction metric: StructureMatcher at CDVAE's tolerances. The
match rate is the share of targets that some sample matches. The RMSE is the mean, over matched targets, of the smallest
root mean square distance of sites, in units of (volume / atoms)^(1/3).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from pymatgen.core import Structure
from pymatgen.core.structure_matcher import StructureMatcher
from tqdm import tqdm

from crystal_jax.errors import UserError
from crystal_jax.evaluate.metrics.rate import Rate
from crystal_jax.evaluate.novelty.matcher import LOOSE_MATCHER
from crystal_jax.structures import Entry, Sample
from crystal_jax.suppress_warnings import quiet

MATCHER = {name: value for name, value in LOOSE_MATCHER.items() if name != "scale"}


def assign(samples: Sequence[Sample], targets: Sequence[Sample], entries: Sequence[Entry]) -> list[list[int]]:
    """Assigns samples to targets; returns the indices of each target's samples.

    If the samples' names, or the names of their requests, are all names of targets, they decide. Otherwise, if all
    samples state a request number and there is more than one number, it is the index of the target. Otherwise samples
    are divided into equal groups in order: the first group belongs to the first target, the second to the second.

    Args:
        samples: the generated crystals.
        targets: known structures, in the order of the requests.
        entries: the samples' entries, which state the number and name of their request.

    Raises:
        UserError: none of the three ways is possible.
    """
    places: dict[str, list[int]] = {target.name: [] for target in targets}
    for names in [sample.name for sample in samples], [entry.request_name for entry in entries]:
        if len(places) == len(targets) and all(name in places for name in names):
            for i, name in enumerate(names):
                places[name].append(i)
            return [places[target.name] for target in targets]
    numbers = [entry.request for entry in entries if entry.request is not None]
    if len(numbers) == len(samples) and len(set(numbers)) > 1:
        if max(numbers) >= len(targets):
            raise UserError(
                f"a sample answers request {max(numbers) + 1}, and there are {len(targets)} targets: give the targets "
                "of all requests, in their order"
            )
        groups: list[list[int]] = [[] for _ in targets]
        for i, number in enumerate(numbers):
            groups[number].append(i)
        return groups
    each, rest = divmod(len(samples), max(1, len(targets)))
    if rest or not each:
        raise UserError(
            f"{len(samples)} samples do not belong to {len(targets)} targets: names differ, they do not say which "
            "request they answer (column request_number), and there are not equally many for each"
        )
    return [list(range(t * each, (t + 1) * each)) for t in range(len(targets))]


def check_compositions(
    samples: Sequence[Sample], targets: Sequence[Sample], groups: Sequence[Sequence[int]]
) -> list[str]:
    """Returns the names of targets without a sample of the target's reduced formula.

    Raises:
        UserError: most samples have another formula than their target, so they do not belong together.
    """
    strangers, judged, right = [], 0, 0
    for target, group in zip(targets, groups, strict=True):
        formulas = [c.reduced_formula for i in group if (c := samples[i].composition) is not None]
        if target.composition is None or not formulas:
            continue
        own = formulas.count(target.composition.reduced_formula)
        judged, right = judged + len(formulas), right + own
        if not own:
            strangers.append((target, formulas[0]))
    if strangers and 2 * right < judged:
        target, other = strangers[0]
        assert target.composition is not None
        raise UserError(
            f"samples and targets do not belong together: {judged - right} of {judged} samples have another formula "
            f"than their target (target {target.name} is {target.composition.reduced_formula}, its sample is {other}); "
            "give the targets in the order of the requests"
        )
    return [target.name for target, _ in strangers]


@quiet()
def metrics_of(
    samples: Sequence[Sample],
    targets: Sequence[Sample],
    entries: Sequence[Entry],
    *,
    progress: bool = False,
) -> dict[str, Any]:
    """Returns `match_rate` over all targets, and `match_rmse` over the matched targets.

    Targets without a sample of their formula are counted, and named on standard error.

    Args:
        samples: the generated crystals.
        targets: known structures.
        entries: see `assign`.
        progress: whether to show a progress bar.

    Raises:
        UserError: see `assign` and `check_compositions`.
    """
    groups = assign(samples, targets, entries)
    strangers = check_compositions(samples, targets, groups)
    if strangers:
        print(
            f"no sample has the formula of {len(strangers)} of {len(targets)} targets: {', '.join(strangers[:5])}"
            + (", ..." if len(strangers) > 5 else ""),
            file=sys.stderr,
        )
    best = [
        min((_distance(samples[i].structure, target.structure) for i in group), default=np.inf)
        for target, group in tqdm(
            list(zip(targets, groups, strict=True)), "targets", unit="crystal", disable=not progress
        )
    ]
    matched = [distance for distance in best if np.isfinite(distance)]
    return {
        "match_rate": Rate(len(matched), len(targets)).as_dict()
        | {"samples_each": len(samples) / max(1, len(targets)), "targets_without_their_formula": len(strangers)},
        "match_rmse": {"value": float(np.mean(matched)) if matched else None, "targets": len(matched)},
    }


def _distance(one: Structure | None, other: Structure | None) -> float:
    """Returns the matcher's root mean square distance; infinite if the structures do not match."""
    if one is None or other is None:
        return np.inf
    try:
        found = StructureMatcher(**MATCHER).get_rms_dist(one, other)
    except (ValueError, ArithmeticError, IndexError, np.linalg.LinAlgError):
        return np.inf
    return float(found[0]) if found else np.inf
