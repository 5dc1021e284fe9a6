"""Writes new crystals with a trained model.

Each text is drawn under the grammar of crystals, so that every one can be read. What you ask for is of two kinds:

  limits   kept to by every sample, exactly: --formula, --chemical_system, --elements, --exclude_elements, numbers of
           atoms and elements, and --constraints
  hints    stand in the prompt, and the model follows them more or less: --spacegroup, --e_above_hull, --band_gap,
           --formation_energy_per_atom; with --hints_only the formula, too

Where a hint is given without a formula, the model first draws formulas as it does without any request, under the
limits, and is then asked for formula and hints together. Many requests at once come from a CSV file (--requests).

Samples are appended to the output directory as they are finished; the same command run again goes on where it stopped,
and --num_samples can be raised. Several temperatures, or several shares --top_p, are one job: each pair has a folder of
its own in the output directory.

On a pod the same command runs on every host, with --distributed, and the output lies on a disk that all of them see.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from absl import flags

from crystal_jax import flag_fields, processes
from crystal_jax.checkpoint.model_flags import define_model_flags, step_of
from crystal_jax.errors import UserError
from crystal_jax.provenance import command_line
from crystal_jax.sample.config import SampleConfig
from crystal_jax.sample.request_flags import HINT_FLAGS, define_request_flags, hints_in, limits_in
from crystal_jax.sample.requests import CONSTRAINT_COLUMNS, read_requests


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags of `crystal-jax sample`."""
    define_model_flags(flag_values)
    flag_fields.define(flag_values, SampleConfig, names=("num_samples", "temperature", "top_p"))
    define_request_flags(flag_values)
    flags.DEFINE_string(
        "requests",
        None,
        "Ask for what each line of this CSV file says. Columns: hints by MP-20's names (pretty_formula, "
        f"spacegroup.number, ...); limits ({', '.join(CONSTRAINT_COLUMNS)}), in addition to the flags of these names; "
        "name.",
        flag_values=flag_values,
    )
    names = ("hints_only", "constraints", "oxidation_states", "min_distance", "min_radius_factor", "max_retries")
    flag_fields.define(flag_values, SampleConfig, names=(*names, "batch_size", "kv_cache", "seed"))
    flags.DEFINE_string("output", None, "Directory for samples.jsonl, samples.csv, cif/.", flag_values=flag_values)
    flag_fields.define(flag_values, SampleConfig, names=("extxyz",))
    processes.define_flags(flag_values)
    flags.mark_flags_as_required(["checkpoint", "output"], flag_values)


def main(flag_values: flags.FlagValues) -> None:
    """Entry of `crystal-jax sample`."""
    asked, requests = hints_in(flag_values), flag_values.requests
    if requests and asked:
        raise UserError(
            "--requests states the properties; leave out --" + ", --".join(HINT_FLAGS[name] for name in asked)
        )
    settings = flag_fields.given(flag_values, SampleConfig) | limits_in(flag_values)
    settings |= dict(step=step_of(flag_values), mesh=flag_values.mesh, output=Path(flag_values.output))
    processes.join_if_asked(flag_values)
    settings["conditions"] = read_requests(Path(requests)) if requests else asked
    path = sample(flag_values.checkpoint, **settings, command=command_line("sample", flag_values))
    if processes.is_first():
        print(f"samples: {path}")


def sample(checkpoint: str | Path | SampleConfig, *, command: str = "sample", **settings: Any) -> Path:
    """Draws crystals and returns the path of `samples.csv`; with several temperatures or top_p, that of `output`.

    Args:
        checkpoint: A workdir, an exported folder, or the name of a released model; or all settings at once.
        command: The command line, for `run.json` and reports.
        settings: Fields of `SampleConfig`; `output` is needed.

    Raises:
        UserError: no such checkpoint, an impossible setting, or an output directory of another request.
        TypeError: a setting has an unknown name.
    """
    config = checkpoint if isinstance(checkpoint, SampleConfig) else SampleConfig(checkpoint=checkpoint, **settings)
    # Late, so that --help and bad flags answer at once.
    from crystal_jax.sample.sample_run import SampleRun

    return SampleRun(config).write(command=command)
