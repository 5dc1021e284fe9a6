import pandas as pd

from crystal_jax.evaluate.oxidation import load_oxidation_table
from crystal_jax.evaluate.samples import Entry
from crystal_jax.evaluate.structures import COLUMNS, describe, parse_all, properties


def test_space_groups_are_those_of_the_materials_project(shared):
    table = pd.read_csv(shared / "data/mp20_open/test.csv.gz", nrows=60)
    entries = [Entry(name, cif) for name, cif in zip(table["material_id"], table["cif"], strict=True)]
    rows = describe(parse_all(entries), load_oxidation_table())
    assert list(rows.columns) == list(COLUMNS)
    assert rows["structurally_valid"].all()
    assert rows.loc[rows["valid"], "spacegroup"].tolist() == table.loc[rows["valid"], "spacegroup.number"].tolist()
    assert rows["reduced_formula"].nunique() > 50


def test_properties_skip_what_has_no_structure(salt):
    found = properties(parse_all([Entry("a", salt.to(fmt="cif")), Entry("b", "")]))
    assert found[["num_elements", "num_atoms"]].to_numpy().tolist() == [[2, 8]]
    assert round(found["density"][0], 2) == 2.16  # g/cm^3, halite
