"""Splits crystals into train, val and test so that no formula is in two splits."""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Sequence

from crystal_jax.errors import UserError
from tfds_mp20.crystals import Example

TRAIN, VAL, TEST = "train", "val", "test"
NAMES = (TRAIN, VAL, TEST)
HELD_OUT = 0.05  # share of the crystals that goes to val, and again to test


def by_formula(examples: Sequence[Example]) -> dict[str, list[Example]]:
    """Splits about 90/5/5 by whole formulas, in an order that depends only on the formulas' names.

    Raises:
        UserError: there are fewer than three different formulas.
    """
    groups: dict[str, list[Example]] = collections.defaultdict(list)
    for example in examples:
        groups[example["formula"]].append(example)
    if len(groups) < len(NAMES):
        raise UserError(
            f"{len(groups)} different formula(s) cannot fill three splits without sharing one; "
            "give more crystals, or split them yourself into train.csv, val.csv and test.csv in one folder"
        )
    quota = HELD_OUT * len(examples)
    splits: dict[str, list[Example]] = {name: [] for name in NAMES}
    # A hash, not a shuffle: a formula keeps its position when other crystals are added or removed.
    queue = sorted(groups, key=lambda formula: hashlib.sha256(formula.encode()).digest())
    for held_out in (TEST, VAL):
        # Each split gets at least one formula, and at least one is left for the next.
        while not splits[held_out] or (len(splits[held_out]) < quota and len(queue) > len(NAMES)):
            splits[held_out] += groups[queue.pop()]
    for formula in queue:
        splits[TRAIN] += groups[formula]
    return splits
