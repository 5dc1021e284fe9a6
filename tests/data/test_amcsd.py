import json
import sqlite3

import numpy as np
import pytest
from pymatgen.core import Structure

from crystal_jax.errors import UserError
from tfds_mp20 import amcsd, crystals, splits


@pytest.fixture(scope="module")
def entries():
    return {entry.material_id: entry for entry in amcsd.read_database(amcsd.database_path())}


def test_the_database_is_the_one_described(entries):
    with sqlite3.connect(f"{amcsd.database_path().as_uri()}?mode=ro", uri=True) as connection:
        assert connection.execute("SELECT count(*) FROM cif").fetchone() == (9275,)
    assert len(entries) == 6313


def test_galena_is_reduced_to_its_primitive_cell(entries):
    entry = entries["amcsd-0000003"]  # PbS, a = 5.93 Å, Fm-3m
    assert len(crystals.parse_cif(entry.cif)) == 8
    example = amcsd.to_example(entry)
    lattice = np.frombuffer(example["lattice"], "<f8")
    np.testing.assert_allclose(lattice, [5.93 / np.sqrt(2)] * 3 + [60] * 3, atol=1e-7)
    assert example["atomic_numbers"].tolist() == [82, 16]
    assert (example["formula"], example["spacegroup"], example["source"]) == ("PbS", 225, "amcsd")
    assert json.loads(example["extra"]) == {"formula_sum": "Pb S", "mineral": "Galena"}


def test_the_stored_cif_gives_the_stored_sites(entries):
    example = amcsd.to_example(entries["amcsd-0000003"])
    structure = Structure.from_str(example["cif"], fmt="cif")
    assert [site.specie.Z for site in structure] == example["atomic_numbers"].tolist()
    assert structure.frac_coords.tobytes() == example["frac_coords"]


def test_unseen_hydrogens_and_group_labels_are_refused(entries):
    # Ca(OH)2 given as CaO2; NH4Cl whose NH4 reads as nihonium.
    with pytest.raises(UserError, match=r"AMCSD 0008414: Ca1 O2 in the cell, Ca \(O2 H2\) stated"):
        amcsd.to_example(entries["amcsd-0008414"])
    with pytest.raises(UserError, match="Cl1 Nh1 in the cell, N Cl stated"):
        amcsd.to_example(entries["amcsd-0009319"])


def test_large_cells_are_refused(entries):
    garnet = next(entry for entry in entries.values() if entry.extra.get("mineral") == "Pyrope")
    with pytest.raises(UserError, match="80 atoms in the primitive cell, over 20"):
        amcsd.to_example(garnet)


def test_a_subset_is_exact_seeded_and_split_by_formula():
    def material_ids(seed):
        parts = {name: list(part) for name, part in amcsd.Amcsd(max_entries=24, seed=seed).splits(None).items()}
        groups = [{example["formula"] for example in parts[name]} for name in splits.NAMES]
        assert len(groups[0] | groups[1] | groups[2]) == sum(map(len, groups))
        return [example["material_id"] for part in parts.values() for example in part]

    crystals_per_worker = crystals._WORTH_A_WORKER
    try:
        crystals._WORTH_A_WORKER = 10**6  # so few are sooner parsed than a worker is started
        first = material_ids(0)
        assert len(first) == len(set(first)) == 24
        assert material_ids(0) == first
        assert set(material_ids(1)) != set(first)
    finally:
        crystals._WORTH_A_WORKER = crystals_per_worker


def test_another_file_is_no_database(tmp_path):
    (tmp_path / "amcsd_cif1.db").write_text("something else, long enough to be looked at " * 20)
    with pytest.raises(UserError, match="is not larixite's AMCSD database"):
        amcsd.read_database(tmp_path / "amcsd_cif1.db")


def test_without_larixite_the_cure_is_told(monkeypatch):
    monkeypatch.setattr(amcsd.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install larixite"):
        amcsd.database_path()
