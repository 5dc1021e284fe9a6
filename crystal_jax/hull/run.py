"""Builds a convex hull from known crystals, with the energies of a potential.

A height above the hull is the difference of large energies. If all of them come from one potential, most of its errors
cancel. The package contains such a hull for M3GNet, of the Materials Project's crystals that it was given; this command
completes it in a chemical system, or makes one for another potential:

  crystal-jax hull --chemical_system=Li-P-S --materials_project --output=hulls/Li-P-S
  crystal-jax evaluate --hull=hulls/Li-P-S --energy_model=m3gnet ...

Every known crystal is relaxed with the potential, its energy gets the MP2020 corrections, and the lowest of each
composition is kept. With --num_prototypes=1, stable compounds of the Materials Project that are not among the crystals
are built in the structure of a known crystal of the same space group with similar elements. --structures reads files of
any kind that 'crystal-jax evaluate' reads, and computed entries of pymatgen, such as Matbench Discovery's
*-computed-structure-entries.json.gz.

  OUTPUT/hull.csv.gz   composition, corrected energy in eV/atom, id of the crystal, name of the potential
  OUTPUT/hull.json     sources, numbers of crystals, settings, versions
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from absl import flags

from crystal_jax import flag_fields
from crystal_jax.hull.config import HullConfig


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags of `crystal-jax hull`."""
    flag_fields.define(flag_values, HullConfig)
    flags.mark_flags_as_required(["output"], flag_values)


def main(flag_values: flags.FlagValues) -> None:
    """Runs `crystal-jax hull`."""
    path = hull(**flag_fields.given(flag_values, HullConfig))
    # Late, as in `hull`.
    from crystal_jax.hull.build import summary

    print(summary(path))
    print(path)


def hull(output: str | Path | HullConfig, **settings: Any) -> Path:
    """Builds a hull and returns the path of its table, which `--hull` of other commands reads.

    Args:
        output: a folder for the hull; or all settings at once.
        settings: fields of `HullConfig`.

    Raises:
        UserError: no crystals, an unreadable file, a missing package or key, or an impossible setting.
        TypeError: a setting has an unknown name.
    """
    config = output if isinstance(output, HullConfig) else HullConfig(output=output, **settings)
    # Late, so that --help and bad flags answer at once.
    from crystal_jax.hull.build import build_hull

    return build_hull(config)
