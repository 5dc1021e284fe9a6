"""Computes the likelihood of given crystals under a trained model, as they are and after random translations.

Each crystal has a line in scores.jsonl: the log-probability (nats) of its text after the unconditional prompt, its
perplexity, the same for each translation, and the increase in perplexity under translation (IPT). A crystal that cannot
be scored keeps its line, with the reason. The same command continues an interrupted run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from absl import flags

from crystal_jax import flag_fields
from crystal_jax.checkpoint.model_flags import define_model_flags, step_of
from crystal_jax.score.config import ScoreConfig
from crystal_jax.storage.jsonl_log import JsonlLog


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags of `crystal-jax score`."""
    define_model_flags(flag_values)
    flags.DEFINE_string(
        "samples",
        None,
        "The crystals: a CSV with a column 'cif', a CIF file, or a folder of them.",
        flag_values=flag_values,
    )
    flag_fields.define(flag_values, ScoreConfig)
    flags.DEFINE_string("output", None, "Directory for scores.jsonl and run.json.", flag_values=flag_values)
    flags.mark_flags_as_required(["checkpoint", "samples", "output"], flag_values)


def main(flag_values: flags.FlagValues) -> None:
    """Entry of `crystal-jax score`."""
    settings = flag_fields.given(flag_values, ScoreConfig)
    settings |= dict(step=step_of(flag_values), mesh=flag_values.mesh)
    path = score(flag_values.checkpoint, samples=Path(flag_values.samples), output=Path(flag_values.output), **settings)
    # Late, so that --help and bad flags answer at once.
    from crystal_jax.score.scores import summary

    print(summary(JsonlLog(path).rows()))
    print(path)


def score(checkpoint: str | Path | ScoreConfig, **settings: Any) -> Path:
    """Scores crystals and returns the path of `scores.jsonl`, with one object per crystal, in the order of `samples`:

        index, name             number of the crystal, from 0, and its name in the source
        reason                  why it could not be scored, and then nothing follows; null otherwise
        text                    its text, with sites sorted if the model was trained on sorted sites
        tokens, log_prob        tokens of the text, its EOS included, and log p(text, EOS | prompt) in nats
        log_prob_per_token      their ratio
        perplexity              see `perplexity`
        translations            shift (fractions of the lattice vectors), tokens, log_prob and perplexity of each
        ipt                     see `increase_under_translation`; null without translations

    Args:
        checkpoint: A workdir, an exported folder, or the name of a released model; or all settings at once.
        settings: Fields of `ScoreConfig`; `samples` and `output` are needed.

    Raises:
        UserError: no such checkpoint or crystals, an impossible setting, or an output directory of another request.
        TypeError: a setting has an unknown name.
    """
    config = checkpoint if isinstance(checkpoint, ScoreConfig) else ScoreConfig(checkpoint=checkpoint, **settings)
    # Late, so that --help and bad flags answer at once.
    from crystal_jax.score.score_run import write_scores

    return write_scores(config)
