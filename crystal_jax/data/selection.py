"""Selects the crystals of a data set that a run uses: a chemistry can be held out, or used alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from crystal_jax.config import DataConfig
from crystal_jax.data.mp20 import Record
from crystal_jax.errors import UserError
from crystal_jax.text.crystal_text import ELEMENTS


def selected(records: Sequence[Record], cfg: DataConfig) -> Sequence[Record]:
    """Returns the records with at least one of `cfg.include_elements`, if given, and none of `cfg.exclude_elements`.

    Raises:
        UserError: no record is left.
    """
    if not cfg.exclude_elements and not cfg.include_elements:
        return records
    without, containing = _numbers(cfg.exclude_elements), _numbers(cfg.include_elements)

    def keeps(record: Record) -> bool:
        wanted = not cfg.include_elements or bool(np.isin(record.atomic_numbers, containing).any())
        return wanted and not np.isin(record.atomic_numbers, without).any()

    kept = [record for record in records if keeps(record)]
    if not kept:
        raise UserError(
            f"none of {len(records)} crystals of {cfg.directory} is left by "
            f"data.exclude_elements={cfg.exclude_elements} and data.include_elements={cfg.include_elements}"
        )
    return kept


def _numbers(symbols: Sequence[str]) -> list[int]:
    return [ELEMENTS.index(symbol) + 1 for symbol in symbols]
