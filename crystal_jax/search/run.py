"""Searches for crystals of high reward.

The method is Monte-Carlo tree search with the model's probabilities as the prior. The reward is validity, or minus the
energy per atom of the unrelaxed crystal by an energy model. Limits and hints are those of crystal-jax sample. If the
model's texts start with a composition line, the search is over structures of one composition, which is drawn first, by
--seed, within the limits.

The outputs are those of crystal-jax sample; samples.jsonl holds every finished crystal, the best first, and samples.csv
the best --num_samples.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from absl import flags

from crystal_jax import flag_fields
from crystal_jax.checkpoint.model_flags import define_model_flags, step_of
from crystal_jax.sample.request_flags import define_request_flags, hints_in, limits_in
from crystal_jax.search.config import SearchConfig


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags of `crystal-jax search`."""
    define_model_flags(flag_values)
    flags.DEFINE_string(
        "reward", "validity", "validity, or an energy model: m3gnet, nequix, chgnet.", flag_values=flag_values
    )
    flag_fields.define(flag_values, SearchConfig, names=("budget", "num_samples"))
    define_request_flags(flag_values)
    flag_fields.define(flag_values, SearchConfig, names=("exploration", "temperature", "width", "seed"))
    flags.DEFINE_string("output", None, "Directory for samples.jsonl, samples.csv, cif/.", flag_values=flag_values)
    flags.mark_flags_as_required(["checkpoint", "output"], flag_values)


def main(flag_values: flags.FlagValues) -> None:
    """Entry of `crystal-jax search`."""
    settings = flag_fields.given(flag_values, SearchConfig) | limits_in(flag_values)
    settings |= dict(step=step_of(flag_values), mesh=flag_values.mesh, conditions=hints_in(flag_values))
    # Late, so that --help and bad flags answer at once.
    from crystal_jax.search.rewards import named_reward

    name = flag_values.reward
    path = search(
        flag_values.checkpoint, output=flag_values.output, reward=named_reward(name), reward_name=name, **settings
    )
    print(f"samples: {path}")


def search(checkpoint: str | Path | SearchConfig, **settings: Any) -> Path:
    """Searches for crystals of high reward and returns the path of `samples.csv`, the best first.

    Args:
        checkpoint: A workdir, an exported folder, or the name of a released model; or all settings at once.
        settings: Fields of `SearchConfig`; `output`, `reward` and `reward_name` are needed.

    Raises:
        UserError: no such checkpoint, an impossible setting, a reward that is not finite, or an output directory that
            is not empty.
        TypeError: a setting has an unknown name.
    """
    config = checkpoint if isinstance(checkpoint, SearchConfig) else SearchConfig(checkpoint=checkpoint, **settings)
    # Late, so that --help and bad flags answer at once.
    from crystal_jax.search.search_run import SearchRun

    return SearchRun(config).write()
