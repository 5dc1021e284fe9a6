"""Reads crystals to be judged, and crystals to judge them by.

Sources: a CSV (also .csv.gz) with a column `cif`, a folder of `*.cif` files, extended XYZ, the tensors of CDVAE
(`eval_gen_*.pt`), and, for references, a prepared data set. `read_entries` only collects CIF texts, which is quick;
`parse` builds a structure, in milliseconds.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import pandas as pd

from crystal_jax.errors import UserError
from crystal_jax.structures.entry import Entry
from crystal_jax.structures.sources import read_extxyz, read_tensors

CIF_COLUMNS = ("cif", "cif_str")  # both are in use in published files
NAME_COLUMNS = ("name", "material_id")
FORMULA_COLUMNS = ("formula", "pretty_formula")
_OTHERS = {".extxyz": read_extxyz, ".xyz": read_extxyz, ".pt": read_tensors}  # by how names end


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


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
