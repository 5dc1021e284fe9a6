"""Adds rows to the vocabulary of a checkpoint: for a [PAD] token as in the reference implementation, or to divide
evenly over a mesh.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from crystal_jax.checkpoint.layout import PartSource
from crystal_jax.checkpoint.tensors import Shape

ROWED = ("model.embed_tokens.weight", "lm_head.weight")
_ROWS_AT_ONCE = 4096


class GrownSource:
    """Checkpoint whose embedding and head have `rows` rows; each additional row is the mean of the original ones.

    The reference implementation initialises its added token in the same way; a new token's logit is then never the
    largest.
    """

    def __init__(self, base: PartSource, rows: int):
        self.path, self.dtype = base.path, base.dtype
        self.config = dataclasses.replace(base.config, vocab_size=rows)
        self._base, self._old = base, base.config.vocab_size
        self._means: dict[str, np.ndarray] = {}

    def shapes(self) -> dict[str, Shape]:
        """Returns the shapes with the additional rows."""
        rows = self.config.vocab_size
        return {name: (rows, *s[1:]) if name in ROWED else s for name, s in self._base.shapes().items()}

    def read_part(self, name: str, *where: slice) -> np.ndarray:
        """Reads a rectangle of a tensor, without reading the rest of the tensor."""
        if name not in ROWED:
            return self._base.read_part(name, *where)
        rows, *columns = where
        start, stop, _ = rows.indices(self.config.vocab_size)
        old = self._base.read_part(name, slice(min(start, self._old), min(stop, self._old)), *columns)
        new = self._mean(name)[tuple(columns)]
        return np.concatenate([old, np.broadcast_to(new, (stop - start - len(old), *new.shape))])

    def _mean(self, name: str) -> np.ndarray:
        if name not in self._means:
            total = sum(
                self._base.read_part(name, slice(i, min(i + _ROWS_AT_ONCE, self._old))).astype(np.float64).sum(axis=0)
                for i in range(0, self._old, _ROWS_AT_ONCE)
            )
            self._means[name] = (total / self._old).astype(self.dtype)
        return self._means[name]
