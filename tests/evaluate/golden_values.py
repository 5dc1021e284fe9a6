"""What matminer computes for a few crystals and compositions (golden/README.md)."""

import functools
import json
from pathlib import Path

import numpy as np
from pymatgen.core import Lattice, Structure


@functools.cache
def _read():
    return json.loads((Path(__file__).parent / "golden/fingerprints.json").read_text())


def golden_structures():
    """Names, structures, and their fingerprints."""
    return [
        (
            row["name"],
            Structure(Lattice(row["lattice"]), row["species"], row["coordinates"]),
            np.array(row["fingerprint"]),
        )
        for row in _read()["structures"]
    ]


def golden_compositions():
    """Formulas and their fingerprints before scaling; NaN where a property is not known."""
    return [(row["formula"], np.array(row["fingerprint"], float)) for row in _read()["compositions"]]
