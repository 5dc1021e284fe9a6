"""The samples on disk.

    run.json        the request, and what answered it
    samples.jsonl   one sample a line, as they are finished, and in order when all are; a stopped job goes on with
                    those that are missing
    samples.csv     the reference's columns, gen_str (prompt and text), cif, model_name, and the formula
    cif/            one file a sample whose lattice forms a cell

A sample whose angles form no cell, or that came to a dead end, has no CIF. It keeps its row, so that no rate loses it
from the denominator.
"""

from __future__ import annotations

import csv
import io
import json
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ase.io
from ase import Atoms
from pymatgen.core import Composition
from pymatgen.io.ase import AseAtomsAdaptor
from pymatgen.io.cif import CifWriter
from tqdm import tqdm

from crystal_jax.files import write_text
from crystal_jax.sample.journal import Journal, claim
from crystal_jax.text.crystal_text import Crystal, TextFormat


class SamplesFile(Journal):
    """An output directory and how far it has come: the journal of its `samples.jsonl`."""

    def __init__(self, directory: Path, request: Mapping[str, Any], made_by: Mapping[str, Any]):
        """Begins the directory, or continues it if it holds samples of the same request.

        Raises:
            UserError: it holds something else.
        """
        claim(directory, request, made_by, what="samples")
        super().__init__(directory / "samples.jsonl")
        self.directory = directory

    def rows(self) -> list[dict[str, Any]]:
        """The samples written so far, by their numbers: they are not finished in that order."""
        return sorted(super().rows(), key=lambda row: row["index"])

    def finish(self, text_format: TextFormat, *, limit: int, model_name: str, extxyz: bool = False) -> Path:
        """Puts the samples in order, writes the CSV and the CIF files of the first `limit`; returns the CSV's path.

        With `extxyz`, those that have a cell are written to `samples.extxyz`, too, with their numbers as `index`.
        """
        rows = self.rows()
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        folder = self.directory / "cif"
        folder.mkdir(exist_ok=True)
        content = io.StringIO()
        table = csv.writer(content, lineterminator="\n")
        table.writerow(["gen_str", "cif", "model_name", "formula"])
        cells: list[Atoms] = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pymatgen remarks on every noble gas
            for row in tqdm([row for row in rows if row["index"] < limit], desc="write CIF", unit="crystal"):
                if row["status"] != "complete":
                    table.writerow([row["prompt"] + row["text"], "", model_name, ""])
                    continue
                crystal = text_format.decode(row["text"])
                cif = to_cif(crystal)
                composition = Composition(Counter(crystal.symbols))
                if cif:
                    (folder / f"{row['index']:06d}_{composition.reduced_formula}.cif").write_text(cif)
                if cif and extxyz:
                    cells.append(AseAtomsAdaptor.get_atoms(crystal.to_structure(), info={"index": row["index"]}))
                table.writerow([row["prompt"] + row["text"], cif, model_name, composition.formula])
        if extxyz:
            text = io.StringIO()
            ase.io.write(text, cells, format="extxyz")
            write_text(self.directory / "samples.extxyz", text.getvalue())
        path = self.directory / "samples.csv"
        write_text(path, content.getvalue())
        return path


def to_cif(crystal: Crystal) -> str:
    """The crystal's CIF, in P1; empty where its angles form no cell."""
    return str(CifWriter(crystal.to_structure())) if crystal.forms_cell else ""
