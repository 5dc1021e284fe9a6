"""The settings of a search, written once: command-line flags, `run.json` and keyword arguments come from here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crystal_jax import arguments
from crystal_jax.checkpoint.model_flags import ModelSettings
from crystal_jax.errors import UserError
from crystal_jax.flag_fields import setting
from crystal_jax.sample.request_flags import LimitSettings, check_numbers
from crystal_jax.sample.requests import CONSTRAINT_COLUMNS, Asked, parse_request

if TYPE_CHECKING:
    from crystal_jax.search.rewards import Reward


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchConfig(ModelSettings, LimitSettings):
    """The settings of `crystal-jax search`; the help of the flags says what each of them does.

    Attributes that are no flags, or of which the help says less:
        output: A new directory.
        reward: Maps a crystal to its reward, a finite number.
        reward_name: Name of the reward, recorded in `run.json`.
        conditions: Conditions of the prompt, by the names of `CONDITIONS` in `text/prompts.py`. A formula is enforced,
            too.
        exploration: c in `search/tree.py`.
        temperature: Temperature of the tokens that complete a prefix, and of the composition line.
        width: Crystals decoded side by side; the flag is --batch_size.

    Raises:
        UserError: a setting has the wrong type, or is impossible.
    """

    output: str | Path
    reward: Reward
    reward_name: str
    budget: int = setting(10_000, "Model calls; a sampled crystal takes one for each of its tokens.")
    num_samples: int = setting(20, "How many of the best go into samples.csv.")
    conditions: Asked | None = None
    exploration: float = setting(1.0, "Weight of the model's probabilities against rewards.")
    temperature: float = setting(1.0, "Of what is written beyond the tree; 0 is greedy.")
    width: int = setting(16, "Crystals written side by side.", flag="batch_size")
    seed: int = setting(0, "The same seed finds the same crystals.")

    def __post_init__(self):
        if not 0 <= self.temperature < float("inf") or not 0 <= self.exploration < float("inf"):
            raise UserError(
                f"temperature={self.temperature} and exploration={self.exploration} must be finite and not negative"
            )
        check_numbers(
            num_samples=self.num_samples,
            budget=self.budget,
            width=self.width,
            max_atoms=self.max_atoms,
            seed=self.seed,
        )
        normal = dict(output=arguments.path("output", self.output), conditions=parse_request(self.conditions or {}))
        for name, value in normal.items():
            object.__setattr__(self, name, value)

    @property
    def limits(self) -> Mapping[str, Any]:
        """Returns the limits on every crystal, parsed, by the names of `CONSTRAINT_COLUMNS`.

        Raises:
            UserError: a limit cannot be read.
        """
        return parse_request({name: getattr(self, name) for name in CONSTRAINT_COLUMNS if name != "constraints"})
