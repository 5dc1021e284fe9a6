"""Builds a TFDS data set of crystals, or prints its directory if it exists already.

Data sets:
  amcsd      measured mineral structures; needs no network (default)
  mp20       MP-20 of CDVAE; downloaded, or from --manual_dir
  perov5     Perov-5 of CDVAE; downloaded, or from --manual_dir
  carbon24   Carbon-24 of CDVAE; downloaded, or from --manual_dir
  mp20_open  train, val and test (.csv or .csv.gz) from --manual_dir
  csv        your own: --manual_dir is a CSV table with a column 'cif', a folder of train.csv, val.csv and
             test.csv, or other files of crystals: CIF, POSCAR, extended XYZ, JSON of pymatgen, a folder or a .zip
             of them; optional columns of tables: material_id, formation_energy_per_atom (eV/atom), band_gap (eV),
             e_above_hull (eV/atom), spacegroup, source, formula (compared with the sites)

Cells of csv crystals are reduced to primitive ones; --noprimitive keeps them. Crystals that a model cannot learn
(for example, with more than 20 atoms) are listed.

Examples:
  crystal-jax prepare
  crystal-jax prepare --dataset=amcsd --max_entries=512
  crystal-jax prepare --dataset=csv --manual_dir=my_crystals.csv
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from tfds_mp20.names import DATASETS, FAIL, SKIP

_SHOWN = 50  # crystals that are listed


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags of `crystal-jax prepare`."""
    flags.DEFINE_enum("dataset", "amcsd", DATASETS, "What to build.", flag_values=flag_values)
    flags.DEFINE_string(
        "manual_dir",
        None,
        "Folder with the data set's files; for csv also a single file.",
        flag_values=flag_values,
    )
    flags.DEFINE_string("data_dir", "data", "Where data sets are kept.", flag_values=flag_values)
    flags.DEFINE_integer(
        "max_entries", None, "Build a subset of this many crystals.", lower_bound=1, flag_values=flag_values
    )
    flags.DEFINE_integer("seed", 0, "Chooses the subset.", flag_values=flag_values)
    flags.DEFINE_enum(
        "on_error",
        FAIL,
        [FAIL, SKIP],
        "What to do where csv crystals cannot be used.",
        flag_values=flag_values,
    )
    flags.DEFINE_boolean(
        "primitive", True, "Reduce the cells of csv crystals to primitive ones.", flag_values=flag_values
    )


def main(flag_values: flags.FlagValues) -> None:
    """Prepares the data set and prints its directory and the number of rows in each split."""
    # Late, so that --help and bad flags answer at once.
    from crystal_jax.data.mp20 import dataset_info
    from crystal_jax.data.prepare import prepare
    from crystal_jax.data.unfit import unfit

    directory = prepare(
        flag_values.dataset,
        data_dir=Path(flag_values.data_dir).expanduser(),
        manual_dir=Path(flag_values.manual_dir).expanduser() if flag_values.manual_dir else None,
        max_entries=flag_values.max_entries,
        seed=flag_values.seed,
        on_error=flag_values.on_error,
        primitive=flag_values.primitive,
    )
    info = dataset_info(directory)
    print(directory)
    for split, rows in info.rows.items():
        print(f"{split:>6} {rows:8,}")
    if flag_values.dataset == "csv":
        _name_unfit(unfit(directory), sum(info.rows.values()))


def _name_unfit(lines: Sequence[str], total: int) -> None:
    if lines:
        print(f"{len(lines)} of {total} crystals cannot be learned as they are:", file=sys.stderr)
        print("\n".join(f"  {line}" for line in lines[:_SHOWN]), file=sys.stderr)
    if len(lines) > _SHOWN:
        print(f"  and {len(lines) - _SHOWN} more", file=sys.stderr)
