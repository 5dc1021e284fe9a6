"""Damaged files of crystals, and of requests."""

import json

import pandas as pd

from crystal_jax.sample.requests import read_requests
from crystal_jax.structures import parse, read_entries
from tests.broken_inputs.damage import Reader
from tests.broken_inputs.valid_folders import SALT


def crystals_folder(folder):
    folder.mkdir()
    SALT.to(filename=str(folder / "salt.cif"))
    pd.DataFrame({"material_id": ["a"], "cif": [SALT.to(fmt="cif")]}).to_csv(folder / "table.csv", index=False)
    (folder / "POSCAR").write_text(SALT.to(fmt="poscar"))
    (folder / "salt.json").write_text(json.dumps(SALT.as_dict()))
    lattice = " ".join(str(x) for x in SALT.lattice.matrix.ravel())
    header = f'2\nLattice="{lattice}" Properties=species:S:1:pos:R:3 pbc="T T T"\n'
    (folder / "salt.extxyz").write_text(header + "Na 0 0 0\nCl 2.82 2.82 2.82\n")


def requests_folder(folder):
    folder.mkdir()
    text = 'formula,spacegroup,e_above_hull,elements,name\nNaCl,225,0.0,,salt\n,Pnma,,"Li,P,S",\n'
    (folder / "requests.csv").write_text(text)


def of_crystals(file):
    def read(folder):
        for entry in read_entries(folder / file):
            parse(entry)

    return Reader(crystals_folder, file, read)


JSON_READERS = {"crystal": of_crystals("salt.json")}
READERS = {
    **JSON_READERS,
    "CIF": of_crystals("salt.cif"),
    "table": of_crystals("table.csv"),
    "POSCAR": of_crystals("POSCAR"),
    "extxyz": of_crystals("salt.extxyz"),
    "requests": Reader(requests_folder, "requests.csv", lambda folder: read_requests(folder / "requests.csv")),
}
