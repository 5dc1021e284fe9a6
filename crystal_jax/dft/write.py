"""Writes VASP inputs for the crystals that an evaluation found metastable, with the Materials Project's settings.

Each crystal gets a folder in --output with INCAR, KPOINTS, POSCAR (the relaxed crystal) and POTCAR.spec, which names
the pseudopotentials; POTCAR itself is licensed and must be added by you. manifest.csv lists the crystal of each
folder. When the calculations have finished, 'crystal-jax dft collect' reads their results.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from crystal_jax.energy.settings import METASTABLE


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags of `crystal-jax dft write`."""
    flags.DEFINE_string(
        "evaluation", None, "Folder written by 'evaluate' with --hull.", required=True, flag_values=flag_values
    )
    flags.DEFINE_string("output", None, "Folder for the inputs; must be new.", required=True, flag_values=flag_values)
    flags.DEFINE_float(
        "max_e_above_hull",
        METASTABLE,
        "Only crystals below this energy above the hull, eV/atom.",
        flag_values=flag_values,
    )


def main(flag_values: flags.FlagValues) -> None:
    """Runs `crystal-jax dft write`."""
    # Late, so that --help and bad flags answer at once.
    from crystal_jax.dft.vasp_inputs import write_inputs
    from crystal_jax.tables import read_rows

    below = flag_values.max_e_above_hull
    manifest = write_inputs(Path(flag_values.evaluation), output=Path(flag_values.output), below=below)
    print(f"{len(read_rows(manifest).records())} calculations; written: {manifest}")
