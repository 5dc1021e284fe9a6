"""Dividing crystals into train, val and test so that no formula is in two of them."""

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
    """Splits about 90/5/5, whole formulas at a time, in an order that only the formulas' names decide.

    Raises:
        UserError: fewer than three different formulas.
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
    # A hash, not a shuffle: a formula keeps its place when other crystals come or go.
    queue = sorted(groups, key=lambda formula: hashlib.sha256(formula.encode()).digest())
    for held_out in (TEST, VAL):
        # At least one formula each, and always one left for the next.
        while not splits[held_out] or (len(splits[held_out]) < quota and len(queue) > len(NAMES)):
            splits[held_out] += groups[queue.pop()]
    for formula in queue:
        splits[TRAIN] += groups[formula]
    return splits
