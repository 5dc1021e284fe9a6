"""The settings of scoring, written once: command-line flags, `run.json` and keyword arguments come from here."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from crystal_jax import arguments
from crystal_jax.checkpoint.model_flags import ModelSettings
from crystal_jax.errors import UserError
from crystal_jax.flag_fields import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreConfig(ModelSettings):
    """The settings of `crystal-jax score`; the help of the flags says what each of them does.

    Attributes that are no flags, or of which the help says less:
        samples: A CSV with a column `cif`, or another source of crystals (`crystal_jax.structures.read`).
        output: Directory for the scores; continued if it holds some of the same request.
        translations: Those of the i-th crystal depend on the seed and on i alone.
        batch_size: No influence on the scores beyond rounding.

    Raises:
        UserError: a setting has the wrong type, or is impossible.
    """

    samples: Path
    output: Path
    translations: int = setting(20, "Random translations of each crystal.")
    batch_size: int = setting(64, "Texts scored side by side.")
    seed: int = setting(0, "Of the translations.", bounds=(0, 2**32 - 1))

    def __post_init__(self):
        if self.translations < 0 or self.batch_size < 1:
            raise UserError(
                f"translations={self.translations} must not be negative, and batch_size={self.batch_size} be positive"
            )
        if self.seed < 0:
            raise UserError(f"seed={self.seed} must not be negative")
        for name in ("samples", "output"):
            object.__setattr__(self, name, arguments.path(name, getattr(self, name)))
