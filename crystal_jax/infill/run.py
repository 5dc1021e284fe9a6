"""Ranks the elements that could replace an element of a crystal by their probability under a trained model.

All atoms of the element are masked, as in training. The probability of every element is computed exactly, not estimated
by sampling. Writes elements.csv, the most probable new crystals as CIF files, and run.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from absl import flags

from crystal_jax import flag_fields
from crystal_jax.checkpoint.model_flags import define_model_flags, step_of
from crystal_jax.infill.config import InfillConfig
from crystal_jax.tables import read_rows


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags of `crystal-jax infill`."""
    define_model_flags(flag_values)
    flags.DEFINE_string(
        "cif", None, "The crystal: a CIF file, or another file of one crystal.", flag_values=flag_values
    )
    flag_fields.define(flag_values, InfillConfig)
    flags.DEFINE_string("output", None, "Directory for elements.csv, cif/ and run.json.", flag_values=flag_values)
    flags.mark_flags_as_required(["checkpoint", "cif", "output"], flag_values)


def main(flag_values: flags.FlagValues) -> None:
    """Entry of `crystal-jax infill`."""
    settings = flag_fields.given(flag_values, InfillConfig)
    settings |= dict(step=step_of(flag_values), mesh=flag_values.mesh)
    path = infill(flag_values.checkpoint, cif=Path(flag_values.cif), output=Path(flag_values.output), **settings)
    print("element  probability  uniform swap")
    for row in read_rows(path).records()[: flag_values.top_k]:
        print(f"{row['symbol']:<7}  {float(row['probability']):11.4f}  {float(row['baseline']):12.4f}")
    print(path)


def infill(checkpoint: str | Path | InfillConfig, **settings: Any) -> Path:
    """Scores every element as a replacement and returns the path of `elements.csv`, the most probable first.

    Its columns are the attributes of `Proposal`. `cif/` holds the given crystal, unrounded, with each of the `top_k`
    elements on the masked sites; the original element keeps its row and gets no file.

    Args:
        checkpoint: A workdir, an exported folder, or the name of a released model; or all settings at once.
        settings: Fields of `InfillConfig`; `cif`, `output`, and either `element` or `site` are needed.

    Raises:
        UserError: no such checkpoint, crystal or site, a model trained without infilling, an impossible setting, or an
            output directory of another request.
        TypeError: a setting has an unknown name.
    """
    config = checkpoint if isinstance(checkpoint, InfillConfig) else InfillConfig(checkpoint=checkpoint, **settings)
    # Late, so that --help and bad flags answer at once.
    from crystal_jax.infill.replacements import write_replacements

    return write_replacements(config)
