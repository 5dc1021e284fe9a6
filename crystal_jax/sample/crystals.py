"""Crystals from files, in the words that a model was trained to read."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from pymatgen.core import DummySpecies, Element, Structure

from crystal_jax.config import Experiment
from crystal_jax.errors import UserError
from crystal_jax.text.crystal_text import Crystal

CIF_COLUMNS = ("cif", "cif_str")  # both are in use in published files
NAME_COLUMNS = ("name", "material_id")


class CifText(NamedTuple):
    """A crystal as its file gives it; nothing is parsed yet."""

    name: str
    cif: str


def read_cifs(path: Path) -> list[CifText]:
    """The CIF texts of a CSV file with a column `cif`, or of a folder of `*.cif` files, in order.

    Raises:
        UserError: the path is missing, of another kind, or holds no crystals.
    """
    if path.is_dir():
        if not (files := sorted(path.glob("*.cif"))):
            raise UserError(f"{path}: the folder holds no *.cif files")
        return [CifText(file.stem, file.read_text(encoding="utf-8", errors="replace")) for file in files]
    if not path.name.endswith((".csv", ".csv.gz")):
        raise UserError(f"{path}: crystals are read from a .csv or .csv.gz file, or from a folder of *.cif files")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file or folder of crystals") from None
    except (OSError, EOFError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise UserError(f"{path}: not a readable CSV file: {_one_line(error)}") from error
    column = next((name for name in CIF_COLUMNS if name in table), None)
    if column is None:
        raise UserError(f"{path}: no column 'cif' (or 'cif_str'); the columns are: {', '.join(map(str, table))}")
    if table.empty:
        raise UserError(f"{path}: the file has a header but no rows")
    names = next((list(table[name]) for name in NAME_COLUMNS if name in table), None)
    return [CifText(*row) for row in zip(names or (f"{i:06d}" for i in range(len(table))), table[column], strict=True)]


def crystal_of_cif(cif: str) -> Crystal:
    """The crystal of a CIF, sites in pymatgen's order, as in the data sets; an isotope or ion is its element.

    Raises:
        ValueError: the CIF is unreadable, or of no ordered crystal of elements; the message is one line.
    """
    if not cif.strip():
        raise ValueError("no CIF")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pymatgen remarks on rounded coordinates
            structure = Structure.from_str(cif, fmt="cif")
    except Exception as error:  # a malformed CIF raises nearly anything
        raise ValueError(f"CIF does not parse: {_one_line(error)}") from error
    if not structure.is_ordered:
        raise ValueError("disordered: a site is shared or partly empty")
    species = [site.specie for site in structure]
    if any(isinstance(specie, DummySpecies) for specie in species):
        raise ValueError("a site holds no real element")
    lattice, symbols = structure.lattice, tuple(Element.from_Z(specie.Z).symbol for specie in species)
    return Crystal(np.array(lattice.abc), np.array(lattice.angles), structure.frac_coords, symbols)


def spelled(crystal: Crystal, experiment: Experiment) -> str:
    """The crystal's text, its sites sorted where the model was trained so, and as they stand elsewhere.

    Raises:
        ValueError: the text format cannot express it.
    """
    if experiment.task.order == "sorted":
        crystal = experiment.text.sorted(crystal)
    text = experiment.text.encode(crystal)
    experiment.text.decode(text)  # an element after lawrencium, an angle that rounds to 0
    return text


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
