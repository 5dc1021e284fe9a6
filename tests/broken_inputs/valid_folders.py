"""Valid folders that tests of several files damage."""

import json

import pandas as pd
from pymatgen.core import Lattice, Structure

from crystal_jax.checkpoint.formats.hf import write_hf
from crystal_jax.evaluate.run import evaluate
from tests.checkpoint.sources import RandomSource
from tests.experiments import TINY

SALT = Structure(Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


def hf_folder(folder):
    write_hf(folder, RandomSource(TINY), dtype="float32", shard_bytes=50_000)


def hull_folder(folder):
    folder.mkdir()
    entries = [
        {
            "composition": {"Na": 1},
            "energy": -1.3,
            "entry_id": "a",
            "correction": 0.0,
            "parameters": {"run_type": "GGA"},
        },
        {"composition": {"Cl": 1}, "energy": -1.8, "entry_id": "b", "parameters": {}},
        {"composition": "NaCl", "energy": -7.2, "energy_adjustments": [{"name": "x", "value": -0.1}], "data": {}},
    ]
    (folder / "hull.json").write_text(json.dumps(entries))
    (folder / "hull.csv").write_text('composition,formation_energy_per_atom\nNaCl,-2.1\n"{""Na"": 1, ""Cl"": 2}",-1\n')
    (folder / "x-elemental-reference-entries.json").write_text(json.dumps(entries[:2]))


def evaluation_folder(folder):
    folder.mkdir()
    pd.DataFrame({"cif": [SALT.to(fmt="cif"), ""]}).to_csv(folder / "samples.csv", index=False)
    evaluate(folder / "samples.csv", output=folder, progress=False, workers=1)
