"""The output directory of a sampling run.

    run.json        the request, and the versions of the software
    samples.jsonl   one sample per line, in the order in which they are finished, sorted at the end; an interrupted run
                    continues with the samples that are missing
    samples.csv     the reference's columns, gen_str (prompt and text), cif, model_name, and the formula; then
                    request_number (from 0), request_name and requested (JSON): the request of the sample
    cif/            one file per sample that has a CIF

A sample has no CIF if its angles form no cell, if two of its atoms are on one site (no reader would accept the file),
or if it was not completed. It keeps its row, so that it counts in the denominator of every rate.
"""

from __future__ import annotations

import io
import json
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms
from pymatgen.core import Composition
from pymatgen.io.ase import AseAtomsAdaptor
from pymatgen.io.cif import CifWriter
from tqdm import tqdm

from crystal_jax.errors import UserError
from crystal_jax.storage.files import write_text
from crystal_jax.storage.jsonl_log import JsonlLog, ensure_same_run, release
from crystal_jax.tables import write_rows
from crystal_jax.text.crystal_text import Crystal, TextFormat

_COLUMNS = ("gen_str", "cif", "model_name", "formula", "request_number", "request_name", "requested")
_FIELDS = {"index": int, "status": str, "prompt": str, "text": str}  # required fields of a row
_SAME_SITE = 1e-3  # fractional; coordinates have two decimals, and pymatgen merges sites within 1e-4


class SamplesFile(JsonlLog):
    """The JSONL log `samples.jsonl` of a sampling run, with its output directory."""

    def __init__(self, directory: Path, request: Mapping[str, Any], made_by: Mapping[str, Any]):
        """Creates the directory, or continues it if it holds samples of the same request.

        Raises:
            UserError: the directory holds something else.
        """
        ensure_same_run(directory, request, made_by, what="samples")
        super().__init__(directory / "samples.jsonl", _FIELDS)
        self.directory = directory

    def rows(self) -> list[dict[str, Any]]:
        """Returns the samples written so far, sorted by number: they are not finished in that order."""
        return sorted(super().rows(), key=lambda row: row["index"])

    def finish(self, text_format: TextFormat, *, limit: int, model_name: str, extxyz: bool = False) -> Path:
        """Sorts the samples, writes the CSV and the CIF files, and returns the path of the CSV.

        Args:
            text_format: Text format of the samples.
            limit: CSV and CIF files hold the samples with a number below it.
            model_name: Name of the model, for the CSV.
            extxyz: Also write the samples that have a CIF to `samples.extxyz`, with their numbers as `index`.

        Raises:
            UserError: a line of the log is damaged.
        """
        rows = self.rows()
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        folder = self.directory / "cif"
        folder.mkdir(exist_ok=True)
        table: list[list[Any]] = []
        cells: list[Atoms] = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pymatgen warns about every noble gas
            for row in tqdm([row for row in rows if row["index"] < limit], desc="write CIF", unit="crystal"):
                asked = row.get("request") or {}
                requested = json.dumps(asked) if asked else ""
                answered = [row.get("request_number", 0), row.get("request_name", ""), requested]
                if row["status"] != "complete":
                    table.append([row["prompt"] + row["text"], "", model_name, "", *answered])
                    continue
                crystal = self._decoded(row, text_format)
                cif = to_cif(crystal)
                composition = Composition(Counter(crystal.symbols))
                if cif:
                    (folder / f"{row['index']:06d}_{composition.reduced_formula}.cif").write_text(cif)
                if cif and extxyz:
                    cells.append(AseAtomsAdaptor.get_atoms(crystal.to_structure(), info={"index": row["index"]}))
                table.append([row["prompt"] + row["text"], cif, model_name, composition.formula, *answered])
        if extxyz:
            text = io.StringIO()
            ase.io.write(text, cells, format="extxyz")
            write_text(self.directory / "samples.extxyz", text.getvalue())
        path = self.directory / "samples.csv"
        write_rows(path, _COLUMNS, table)
        release(self.directory)
        return path

    def _decoded(self, row: Mapping[str, Any], text_format: TextFormat) -> Crystal:
        try:
            return text_format.decode(row["text"])
        except ValueError as error:
            raise UserError(
                f"{self.path} is damaged: sample {row['index']} is no crystal ({error}); delete its line to have it "
                "drawn again; the other lines are whole"
            ) from error


def to_cif(crystal: Crystal) -> str:
    """Returns the CIF of a crystal, in P1; empty if its angles form no cell, or two atoms are on one site."""
    if not crystal.forms_cell or _shares_a_site(crystal):
        return ""
    return str(CifWriter(crystal.to_structure()))


def _shares_a_site(crystal: Crystal) -> bool:
    """Whether a CIF reader takes two atoms for one: it merges them, or finds an occupancy above one."""
    places = crystal.frac_coords
    differences = places[:, None] - places[None]
    apart = np.abs(differences - np.round(differences)).max(axis=-1)
    np.fill_diagonal(apart, 1.0)
    return bool((apart < _SAME_SITE).any())
