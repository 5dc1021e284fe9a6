"""Every crystal of `mp20_open`, read quickly."""

import gzip
from csv import DictReader

import numpy as np

from crystal_jax.text.crystal_text import Crystal

ROWS = {"train": 12_901, "val": 1_000, "test": 1_590}


def crystal_of(cif: str) -> Crystal:
    """Reads the CIFs of this data set, which are all P1 and laid out alike; pymatgen would take minutes."""
    words = dict(line.split(None, 1) for line in cif.split("loop_")[0].splitlines() if line.startswith("_cell"))
    sites = [line.split() for line in cif.split("_atom_site_occupancy\n")[1].splitlines() if line.strip()]
    return Crystal(
        np.array([float(words[f"_cell_length_{axis}"]) for axis in "abc"]),
        np.array([float(words[f"_cell_angle_{name}"]) for name in ("alpha", "beta", "gamma")]),
        np.array([[float(x) for x in site[3:6]] for site in sites]),
        tuple(site[0] for site in sites),
    )


def translated_crystals(shared):
    """All three splits, each crystal moved at random."""
    rng = np.random.default_rng(0)
    found = []
    for split, number in ROWS.items():
        with gzip.open(shared / f"data/mp20_open/{split}.csv.gz", "rt") as file:
            rows = [crystal_of(row["cif"]).translated(rng.random(3)) for row in DictReader(file)]
        assert len(rows) == number
        found += rows
    return found
