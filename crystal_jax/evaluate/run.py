"""Evaluates generated crystals: validity, distributions, uniqueness, novelty, stability.

Reads samples (`samples.csv` of 'crystal-jax sample', any CSV with a column `cif`, CIF files, folders and archives of
them, POSCAR, extended XYZ, JSON of pymatgen's structures, or CDVAE's eval_gen_*.pt) and writes to --output:

  metrics.json     every rate with its value, hits and total; distances; histograms; versions and settings
  structures.csv   one row per sample: formula, density, space group, the checks it passes and reasons for failures
  candidates.csv   the valid, unique and new samples; ranked if there are energies above the hull
  candidates/      their CIF files; relaxed crystals where there was a relaxation
  report.html      all of this as one page

--reference compares the valid samples with real crystals: densities, numbers of elements, and coverage by
fingerprints of structure and composition. --train_reference measures the share of valid samples that are not in the
training set. Both take a CSV, a folder of *.cif, or a data set of 'crystal-jax prepare' as DIR or DIR:split.

--energy_model relaxes the valid samples. With --hull, their energies above the convex hull of known materials are
computed: the rates metastable (below 0.1 eV/atom), stable (below 0), and the rates of samples that are also unique and
new. Each relaxation is saved in OUTPUT/relaxations as soon as it has finished; after an interruption, the same command
continues from there.

--mode=default   a sample that does not parse counts as a failure in the rates
--mode=paper     as published: samples that do not parse are left out of the rates, more than 10,000 samples are
                 replaced by 10,000 drawn with replacement, Zr has SMACT's old electronegativity of 0.33, a sample
                 without a fingerprint is not valid, and coverage compares valid samples with valid real crystals
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from crystal_jax import flag_fields
from crystal_jax.evaluate.config import EvaluateConfig
from crystal_jax.provenance import command_line

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from crystal_jax.evaluate.evaluation import Evaluation


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags of `crystal-jax evaluate`."""
    flag_fields.define(flag_values, EvaluateConfig)
    flags.DEFINE_bool("report", True, "Write the report, OUTPUT/report.html, as well.", flag_values=flag_values)
    flags.mark_flags_as_required(["samples", "output"], flag_values)


def main(flag_values: flags.FlagValues) -> None:
    """Runs `crystal-jax evaluate`."""
    result = evaluate(**flag_fields.given(flag_values, EvaluateConfig), command=command_line("evaluate", flag_values))
    # Late, as in `evaluate`.
    from crystal_jax.evaluate.candidates import missing_for_a_rank

    print(result)
    if remarks := result.metrics["remarks"]:
        print(f"{remarks} samples lack hydrogens of the formula that they state; see the column remark")
    if missing := missing_for_a_rank(result.metrics):
        print(f"candidates are {missing}")
    print(f"\nwritten: {flag_values.output}/metrics.json, structures.csv, candidates.csv, candidates/")
    if flag_values.report:
        from crystal_jax.report.html import write_report

        print(f"written: {write_report(Path(flag_values.output))}")


def evaluate(
    samples: str | Path | Sequence[Structure] | EvaluateConfig, *, command: str | None = None, **settings: Any
) -> Evaluation:
    """Evaluates crystals; writes `metrics.json`, `structures.csv`, `candidates.csv` and `candidates/` if asked to.

    Args:
        samples: a path that `structures.read_entries` reads, or structures in memory; or all settings at once. In a
            CSV, an empty `cif` is a sample that did not parse.
        command: the command line of this evaluation, for the report.
        settings: fields of `EvaluateConfig`; without `output`, no file is written.

    Returns:
        The evaluation: `.metrics`, `.table` with one row per sample, `.candidates`.

    Raises:
        UserError: an input is missing or unreadable, or a setting is impossible.
        TypeError: a setting has an unknown name.
    """
    config = samples if isinstance(samples, EvaluateConfig) else EvaluateConfig(samples=samples, **settings)
    # Late, so that --help and bad flags answer at once.
    from crystal_jax.evaluate.pipeline import run_evaluation

    return run_evaluation(config, command=command)
