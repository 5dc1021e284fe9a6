import numpy as np
import pandas as pd
import pytest
from pymatgen.core import Lattice, Structure

from crystal_jax.errors import UserError
from crystal_jax.evaluate.metrics.conditions import Asked, match_columns, metrics_of
from crystal_jax.structures import Entry, parse
from crystal_jax.text.prompts import generation_prompt

START = "Below is a description of a bulk material. "


def rows_of(samples, heights):
    atoms = [len(sample.structure) if sample.structure else None for sample in samples]
    return pd.DataFrame({"num_atoms": pd.array(atoms, "Int64"), "e_above_hull": heights})


def matched(entries, heights):
    """Returns the metrics, and the table with the columns that they are made of."""
    samples = [parse(entry) for entry in entries]
    table = rows_of(samples, heights)
    table = table.assign(**match_columns(table, entries, samples))
    return metrics_of(table), table


def asking(prompt):
    return Entry("a", "", prompt=prompt)


def test_a_request_counts_more_than_the_prompt(salt):
    """The formula in the prompt may have been drawn by the model."""
    prompt = f"{START}The chemical formula is NaCl. The spacegroup number is 225. "
    entry = Entry("a", salt.to(fmt="cif"), prompt=prompt, requested='{"spacegroup.number": 62}')
    assert Asked.of(entry) == Asked(None, 62, None)
    assert Asked.of(Entry("a", "", prompt=prompt, requested="")) == Asked(None, None, None)
    with pytest.raises(UserError, match="a: requested is not a request in JSON"):
        Asked.of(Entry("a", "", requested="{"))


def test_chemical_systems(salt, cesium_chloride):
    text = '{"chemical_system": ["Na", "Cl"]}'
    entries = [Entry(str(i), s.to(fmt="cif"), requested=text) for i, s in enumerate((salt, cesium_chloride))]
    found, _ = matched(entries, [np.nan, np.nan])
    assert (found["chemical_system_match"]["hits"], found["chemical_system_match"]["total"]) == (1, 2)


def test_reads_our_prompts():
    conditions = {"pretty_formula": "LiFePO4", "spacegroup.number": 62, "e_above_hull": 0.0312, "band_gap": 1.5}
    prompt = generation_prompt(conditions)
    assert Asked.of(asking(prompt + "5.6 5.6 5.6\n90 90 90")) == Asked("LiFePO4", 62, 0.0312)
    assert Asked.of(asking(generation_prompt())) == Asked(None, None, None)


@pytest.mark.parametrize(("text", "height"), [("0.0", 0.0), ("-0.01", -0.01), ("1.2345", 1.2345), ("0", 0.0)])
def test_reads_numbers_before_a_full_stop(text, height):
    assert Asked.of(asking(f"{START}The energy above the convex hull is {text}. Generate")).e_above_hull == height


def test_matches(salt, cesium_chloride):
    prompts = [
        f"{START}The chemical formula is NaCl. The spacegroup number is 225. ",
        f"{START}The chemical formula is CsCl2. The spacegroup number is 221. ",
        f"{START}The chemical formula is NaCl. The energy above the convex hull is 0.05. ",
        f"{START}The energy above the convex hull is 0.3. ",
        START,
    ]
    texts = [salt.to(fmt="cif"), cesium_chloride.to(fmt="cif"), "", cesium_chloride.to(fmt="cif"), ""]
    entries = [Entry(str(i), text, prompt=prompt) for i, (text, prompt) in enumerate(zip(texts, prompts, strict=True))]
    found, rows = matched(entries, [0.02, 0.3, np.nan, 0.2, np.nan])
    assert (found["formula_match"]["hits"], found["formula_match"]["total"]) == (1, 3)
    assert (found["spacegroup_match"]["hits"], found["spacegroup_match"]["total"]) == (2, 2)
    assert (found["e_above_hull_match"]["hits"], found["e_above_hull_match"]["total"]) == (1, 2)
    assert found["spacegroup_match"]["by_atoms"] == {
        "1-5": {"value": 1.0, "hits": 1, "total": 1},
        "6-10": {"value": 1.0, "hits": 1, "total": 1},
    }
    assert rows["formula_match"].tolist()[:3] == [True, False, False]
    assert rows["formula_match"][3:].isna().all()


def test_nothing_asked_nothing_measured(salt):
    entries = [Entry("a", salt.to(fmt="cif"))]
    assert matched(entries, [np.nan])[0] == {}


def test_symmetry_within_two_tenths_of_an_angstrom():
    """An atom 0.1 Å off its place is still there, 0.4 Å is not."""
    verdicts = []
    for off in (0.1, 0.4):
        moved = Structure(Lattice.cubic(4.12), ["Cs", "Cl"], [[0, 0, 0], [0.5 + off / 4.12, 0.5, 0.5]])
        entry = Entry("a", moved.to(fmt="cif"), prompt=f"{START}The spacegroup number is 221. ")
        verdicts.append(matched([entry], [np.nan])[0]["spacegroup_match"])
    assert [verdict["hits"] for verdict in verdicts] == [1, 0]
