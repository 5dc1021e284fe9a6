"""Relaxes crystals to the nearest energy minimum, and says how far above the convex hull they are.

Reads crystals of any kind that 'crystal-jax evaluate' reads, and writes to --output:

  relaxed.csv          one row per crystal: status, energies in eV/atom, energy above the hull, what it decomposes to,
                       space group before and after, the relaxed crystal as CIF
  cif/NAME.cif         the relaxed crystal in its space group, conventional cell
  cif/NAME_p1.cif      the same crystal in the cell that was relaxed, without symmetry
  relaxations/         logs; after an interruption the same command continues from there

A crystal whose relaxation fails keeps its row: the columns status and reason say why.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from crystal_jax import flag_fields
from crystal_jax.relax.config import RelaxConfig

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from crystal_jax.relax.relaxation import Relaxation


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags of `crystal-jax relax`."""
    flag_fields.define(flag_values, RelaxConfig)
    flags.mark_flags_as_required(["structures", "output"], flag_values)


def main(flag_values: flags.FlagValues) -> None:
    """Runs `crystal-jax relax`."""
    print(relax(**flag_fields.given(flag_values, RelaxConfig)))
    print(f"\nwritten: {flag_values.output}/relaxed.csv, cif/")


def relax(structures: str | Path | Sequence[Structure] | RelaxConfig, **settings: Any) -> Relaxation:
    """Relaxes crystals; writes `relaxed.csv` and `cif/` if asked to.

    Args:
        structures: a path that `structures.read_entries` reads, or structures in memory; or all settings at once.
        settings: fields of `RelaxConfig`; without `output`, no file is written.

    Returns:
        The result: `.table` with one row per crystal, and `.structures`, None where a relaxation failed.

    Raises:
        UserError: an input is missing or unreadable, the model cannot be loaded, or a setting is impossible.
        TypeError: a setting has an unknown name.
    """
    config = structures if isinstance(structures, RelaxConfig) else RelaxConfig(structures=structures, **settings)
    # Late, so that --help and bad flags answer at once.
    from crystal_jax.relax.relaxation import relax_structures

    return relax_structures(config)
