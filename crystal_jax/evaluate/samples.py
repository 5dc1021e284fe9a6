"""Reads crystals to be judged, and crystals to judge them by.

Sources: a CSV (also .csv.gz) with a column `cif`, a folder of `*.cif` files, extended XYZ, the tensors of CDVAE
(`eval_gen_*.pt`), and, for references, a prepared data set. `read_entries` only collects CIF texts, which is quick;
`parse` builds a structure, in milliseconds.
"""

from __future__ import annotations

import dataclasses
import re
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
from pymatgen.core import Composition, DummySpecies, Element, Structure

from crystal_jax.errors import UserError
from crystal_jax.evaluate.quiet import quiet
from crystal_jax.evaluate.sources import read_extxyz, read_tensors

CIF_COLUMNS = ("cif", "cif_str")  # both are in use in published files
NAME_COLUMNS = ("name", "material_id")
FORMULA_COLUMNS = ("formula", "pretty_formula")
_OTHERS = {".extxyz": read_extxyz, ".xyz": read_extxyz, ".pt": read_tensors}  # by how names end
MAX_LENGTH = 1e6  # Å; beyond it products of cell vectors lose all precision, and no crystal is meant
_FORMULA = re.compile(r"^_chemical_formula_sum\s+['\"]?([^'\"\n]+)", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A crystal as text; an empty `cif` is a sample whose text did not parse."""

    name: str
    cif: str
    model: str = ""  # what wrote it, if the source says so
    formula: str = ""  # if the source says so
    prompt: str = ""  # what was asked, and maybe the answer, if the source says so

    def stated_composition(self) -> Composition | None:
        """What the source or the CIF's header states; no site is read.

        None if neither does, or not in whole numbers of real elements.
        """
        in_cif = _FORMULA.search(self.cif)
        try:
            stated = Composition(self.formula or (in_cif[1] if in_cif else ""))
        except ValueError:
            return None
        whole = all(isinstance(el, Element) and float(amount).is_integer() for el, amount in stated.items())
        return stated if stated and whole else None


@dataclasses.dataclass(frozen=True)
class Sample:
    """A crystal that was read: either its `structure` or the reason of its `failure` is None.

    A crystal without a structure may still have a `composition`: atoms on top of each other, or angles that form no
    cell, do not hide which elements were meant, and as in CDVAE its compositional validity is judged.
    """

    name: str
    cif: str
    structure: Structure | None
    composition: Composition | None
    failure: str | None


@quiet()
def parse(entry: Entry) -> Sample:
    """Builds the structure of an entry; whatever is wrong with its CIF becomes the sample's `failure`."""
    if not entry.cif.strip():
        return Sample(entry.name, entry.cif, None, entry.stated_composition(), "no CIF: the sample forms no cell")
    try:
        structure = Structure.from_str(entry.cif, fmt="cif")
        failure = _structure_fault(structure)
    except Exception as error:  # a malformed CIF raises nearly anything, and must not end the evaluation
        structure, failure = None, f"CIF does not parse: {_first_line(error)}"
    if failure or structure is None:
        return Sample(entry.name, entry.cif, None, entry.stated_composition(), failure)
    return Sample(entry.name, entry.cif, structure, structure.composition, None)


def read_entries(path: Path) -> list[Entry]:
    """Reads the CIF texts of a CSV file or of a folder of `*.cif` files.

    Raises:
        UserError: the path is missing, of another kind, or holds no crystals.
    """
    if path.is_dir():
        return _read_folder(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder of samples")
    if path.name.endswith((".csv", ".csv.gz")):
        return _read_csv(path)
    reader = next((read for end, read in _OTHERS.items() if path.name.endswith(end)), None)
    if reader is None:
        raise UserError(
            f"{path}: crystals are read from a .csv, .csv.gz, .extxyz or .pt file, or from a folder of *.cif files"
        )
    rows = reader(path)
    named = len({name for name, _, _ in rows}) == len(rows)
    return [Entry(name if named else f"{i:06d}", cif, formula=formula) for i, (name, cif, formula) in enumerate(rows)]


def read_reference(reference: str, *, default_split: str) -> list[Entry]:
    """Reads reference crystals: what `read_entries` reads, or a prepared data set as `DIR` or `DIR:split`.

    Raises:
        UserError: as `read_entries`, or the data set has no such split.
    """
    path = Path(reference)
    if path.is_file() or (path.is_dir() and any(path.glob("*.cif"))):
        return read_entries(path)
    directory, _, split = (reference, "", "") if path.exists() else reference.rpartition(":")
    if not directory or not Path(directory).is_dir():
        raise UserError(f"{reference}: no such reference; give a CSV, a folder of *.cif, or a data set as DIR:split")

    from crystal_jax.data import mp20  # here, because only this case needs TensorFlow Datasets

    records = mp20.open_split(Path(directory), split or default_split)
    return [Entry(record.material_id, record.cif, formula=record.formula) for record in records]


def _read_folder(path: Path) -> list[Entry]:
    files = sorted(path.glob("*.cif"))
    if not files:
        raise UserError(f"{path}: the folder holds no *.cif files")
    return [Entry(file.stem, file.read_text(encoding="utf-8", errors="replace")) for file in files]


def _read_csv(path: Path) -> list[Entry]:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except pd.errors.EmptyDataError:
        raise UserError(f"{path}: the file is empty; it needs a header with a column 'cif'") from None
    except (pd.errors.ParserError, UnicodeDecodeError, OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not a readable CSV file: {_first_line(error)}") from error
    column = next((name for name in CIF_COLUMNS if name in table), None)
    if column is None:
        found = ", ".join(map(str, table.columns))
        raise UserError(f"{path}: no column 'cif' (or 'cif_str'); the columns are: {found}")
    if table.empty:
        raise UserError(f"{path}: the file has a header but no rows")
    names = next((table[name] for name in NAME_COLUMNS if name in table and table[name].is_unique), None)
    if names is None:
        names = pd.Series([f"{i:06d}" for i in range(len(table))])
    blank = pd.Series([""] * len(table))
    models = table.get("model_name", blank)
    formulas = next((table[name] for name in FORMULA_COLUMNS if name in table), blank)
    prompts = table.get("gen_str", blank)
    return [Entry(*values) for values in zip(names, table[column], models, formulas, prompts, strict=True)]


def _structure_fault(structure: Structure) -> str | None:
    if not structure.is_ordered:
        return "disordered: a site is shared or partly empty"
    if any(isinstance(specie, DummySpecies) for specie in structure.composition):
        return "a site holds no real element"
    finite = np.isfinite(structure.lattice.matrix).all() and max(structure.lattice.abc) < MAX_LENGTH
    if not finite or not structure.volume > 0 or not np.isfinite(structure.frac_coords).all():
        return "the lattice forms no cell"
    return None


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
