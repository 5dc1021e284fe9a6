import pandas as pd
from pymatgen.core import Lattice, Structure
from pymatgen.io.cif import CifWriter

from crystal_jax.evaluate.checks import COLUMNS, check_samples
from crystal_jax.evaluate.chemistry.oxidation import load_oxidation_table
from crystal_jax.evaluate.crystals import parse_all, properties
from crystal_jax.structures import Entry


def test_space_groups_are_those_of_the_materials_project(shared):
    table = pd.read_csv(shared / "data/mp20_open/test.csv.gz", nrows=60)
    entries = [Entry(name, cif) for name, cif in zip(table["material_id"], table["cif"], strict=True)]
    rows = check_samples(parse_all(entries), load_oxidation_table())
    assert list(rows.columns) == list(COLUMNS)
    assert rows["structurally_valid"].all()
    assert (
        rows.loc[rows["passes_checks"], "spacegroup"].tolist()
        == table.loc[rows["passes_checks"], "spacegroup.number"].tolist()
    )
    assert rows["reduced_formula"].nunique() > 50


def test_properties_skip_what_has_no_structure(salt):
    found = properties(parse_all([Entry("a", salt.to(fmt="cif")), Entry("b", "")]))
    assert found[["num_elements", "num_atoms"]].to_numpy().tolist() == [[2, 8]]
    assert round(found["density"][0], 2) == 2.16  # g/cm^3, halite


def test_a_formula_is_judged_where_no_structure_is_left():
    """Two atoms on one site are no structure to pymatgen; which elements they are remains known, as in CDVAE."""
    twice = [[0, 0, 0], [0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0, 0]]
    on_top = str(CifWriter(Structure(Lattice.cubic(5), ["Na", "Na", "Cl", "Cl"], twice)))
    entries = [Entry("on top", on_top), Entry("no cell", "", formula="Na1 Cl3"), Entry("unknown", "")]
    rows = check_samples(parse_all(entries), load_oxidation_table())
    assert rows["structurally_valid"].tolist() == [False, False, False]
    assert rows["compositionally_valid"].tolist() == [True, False, False]
    assert rows["formula"].tolist()[:2] == ["Na2 Cl2", "Na1 Cl3"]
    assert rows["checks_failure"][1] == "no CIF: the sample forms no cell; no oxidation states balance"
