"""Collects finished VASP runs into an evaluation: which crystals are stable by density-functional theory (DFT).

Takes the folders that 'crystal-jax dft write' made, reads vasprun.xml (also .gz) in each, applies the MP2020
corrections and computes the energy above the hull. Fills in the columns dft_status and e_above_hull_dft of
structures.csv and candidates.csv, and stable_dft of metrics.json: the share of samples below 0 eV/atom, with the
denominator of metastable. The results are kept in dft.csv, from which a later 'crystal-jax evaluate' of the same
samples takes them. Writes the report again.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags of `crystal-jax dft collect`."""
    flags.DEFINE_string("evaluation", None, "Folder written by 'evaluate'.", required=True, flag_values=flag_values)
    flags.DEFINE_string("runs", None, "Folder written by 'dft write'.", required=True, flag_values=flag_values)
    flags.DEFINE_string("hull", None, "Known materials, as for 'evaluate'.", required=True, flag_values=flag_values)
    flags.DEFINE_string("hull_elements", None, "The elements' entries, as for 'evaluate'.", flag_values=flag_values)
    flags.DEFINE_bool("report", True, "Write the report, EVALUATION/report.html, as well.", flag_values=flag_values)


def main(flag_values: flags.FlagValues) -> None:
    """Runs `crystal-jax dft collect`."""
    # Late, so that --help and bad flags answer at once.
    from crystal_jax.dft.vasp_results import collect_results
    from crystal_jax.energy.convex_hull.hull import read_hull
    from crystal_jax.report.html import write_report

    evaluation, elements = Path(flag_values.evaluation), flag_values.hull_elements
    hull = read_hull(Path(flag_values.hull), elements=Path(elements) if elements else None)
    found = collect_results(evaluation, runs=Path(flag_values.runs), hull=hull)
    rate = found["stable_dft"]
    print(f"{found['dft_status_counts']}\nstable by DFT: {rate['hits']} of {rate['total']} samples")
    if flag_values.report:
        print(f"written: {write_report(evaluation)}")
