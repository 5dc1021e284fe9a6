"""Reads measured mineral structures: the American Mineralogist Crystal Structure Database inside `larixite`.

The Python package larixite contains a copy of the database (9,275 entries) as one SQLite file. It is read directly,
because larixite's own loader first tries to download a larger one.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import importlib.util
import json
import logging
import math
import random
import sqlite3
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pymatgen.core import Structure

from crystal_jax.errors import UserError
from crystal_jax.structures.formula import agrees, composition
from tfds_mp20 import crystals, splits
from tfds_mp20.crystals import Entry, Example

MAX_ATOMS = 20  # largest number of atoms in a primitive cell, as in MP-20
_SOURCE = "amcsd"
_log = logging.getLogger(__name__)
_MISSING = "<missing>"
_SCALE = 4e6  # the database stores coordinates and occupancies as round(4e6 x) in int32
_UNKNOWN = 2.0  # the database stores "?" as 2 and "." as 3
_QUERY = """
    SELECT cif.*, spacegroups.symmetry_xyz, minerals.name AS mineral
    FROM cif
    JOIN spacegroups ON spacegroups.id = cif.spacegroup_id
    LEFT JOIN minerals ON minerals.id = cif.mineral_id
    ORDER BY cif.id
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Amcsd:
    """Source of ordered structures of at most 20 atoms in the primitive cell.

    Attributes:
        max_entries: stop after this many; None takes all.
        seed: seed of the order in which the database is read if `max_entries` is given.
    """

    max_entries: int | None = None
    seed: int = 0

    def splits(self, dl_manager: Any) -> dict[str, Iterator[Example]]:
        """Parses the database and splits it by formula; TFDS's download manager is not used.

        Raises:
            UserError: the database is not installed.
        """
        del dl_manager
        entries = read_database(database_path())
        label = "AMCSD"
        if self.max_entries is not None:
            random.Random(self.seed).shuffle(entries)
            label += f", until {self.max_entries} are found"
        examples = []
        with contextlib.closing(crystals.parse_all(entries, to_example, label=label)) as results:
            for result in results:
                if not isinstance(result, UserError):
                    examples.append(result)
                if len(examples) == self.max_entries:
                    break
        _log.info("%d of %d AMCSD entries are kept", len(examples), len(entries))
        return {split: iter(kept) for split, kept in splits.by_formula(examples).items()}


def database_path() -> Path:
    """Finds the SQLite file without importing larixite.

    Raises:
        UserError: larixite is not installed, or has no such file.
    """
    package = importlib.util.find_spec("larixite")
    for folder in (package and package.submodule_search_locations) or ():
        if (path := Path(folder) / "amcsd_cif1.db").is_file():
            return path
    raise UserError("the AMCSD structures come with the package larixite; run: pip install larixite==2026.1.0")


def read_database(path: Path) -> list[Entry]:
    """Returns the entries with numeric cell and coordinates that could be small and ordered.

    Raises:
        UserError: the file is not the database.
    """
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
            connection.row_factory = sqlite3.Row
            rows = connection.execute(_QUERY).fetchall()
    except sqlite3.DatabaseError as error:
        raise UserError(f"{path} is not larixite's AMCSD database ({error}); reinstall larixite") from error
    return [entry for row in rows if (entry := _entry(row)) is not None]


def to_example(entry: Entry) -> Example:
    """Reduces an entry to its primitive cell, and stores the CIF of that cell.

    Raises:
        UserError: the structure does not parse, is disordered, has more than 20 atoms, or its atoms differ from the
            formula that the database states: hydrogens that X-rays did not detect, or a site labelled by a group ("NH4"
            would be read as nihonium).
    """
    structure = crystals.parse_cif(entry.cif)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        primitive = structure.get_primitive_structure()
        if len(primitive) > MAX_ATOMS:
            raise UserError(f"{entry.where}: {len(primitive)} atoms in the primitive cell, over {MAX_ATOMS}")
        # Built again without the sites' labels, which are not unique.
        structure = Structure(primitive.lattice, primitive.species, primitive.frac_coords).get_sorted_structure()
        stated = composition(str(entry.extra["formula_sum"]))
        if stated is None or not agrees(structure.composition, stated):
            raise UserError(f"{entry.where}: {structure.formula} in the cell, {entry.extra['formula_sum']} stated")
        return crystals.to_example(dataclasses.replace(entry, cif=structure.to(fmt="cif")))


def _entry(row: sqlite3.Row) -> Entry | None:
    labels = json.loads(row["atoms_sites"])
    coords = np.stack([_decode(row[f"atoms_{axis}"]) for axis in "xyz"], axis=-1)
    occupancies = np.ones(len(labels)) if row["atoms_occupancy"] == "0" else _decode(row["atoms_occupancy"])
    cell = [row[name] for name in ("a", "b", "c", "alpha", "beta", "gamma")]
    hopeless = len(labels) > MAX_ATOMS or (occupancies < 1).any() or (abs(coords) >= _UNKNOWN).any()
    if hopeless or not all(map(_is_number, cell)):
        return None
    code = f"{row['id']:07d}"
    name = {} if row["mineral"] in (None, _MISSING) else {"mineral": row["mineral"]}
    return Entry(
        cif=_cif_text(code, cell, json.loads(row["symmetry_xyz"]), labels, coords),
        where=f"AMCSD {code}",
        material_id=f"amcsd-{code}",
        source=_SOURCE,
        extra={"formula_sum": row["formula"], **name},
    )


def _decode(column: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(column), "<i4") / _SCALE


def _is_number(text: str) -> bool:
    """Returns False for the two or three cells written as "6.4235," or "3,2518"."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _cif_text(
    code: str, cell: Sequence[str], symmetry: Sequence[str], labels: Sequence[str], coords: np.ndarray
) -> str:
    """Returns a minimal CIF: cell (Å, degrees), symmetry operations, and sites at `coords` [n_sites, 3]."""
    names = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
    return "\n".join(
        [
            f"data_{code}",
            *(f"_cell_{name} {value}" for name, value in zip(names, cell, strict=True)),
            "loop_",
            "_space_group_symop_operation_xyz",
            *(f"'{operation}'" for operation in symmetry),
            "loop_",
            "_atom_site_label",
            *(f"_atom_site_fract_{axis}" for axis in "xyz"),
            # The database stores six decimals; pymatgen reads 0.333333 as 1/3.
            *(f"{label} {x:.6f} {y:.6f} {z:.6f}" for label, (x, y, z) in zip(labels, coords, strict=True)),
            "",
        ]
    )
