import json

import numpy as np
import pandas as pd
import pytest
from monty.serialization import dumpfn
from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.core import Composition
from pymatgen.entries.computed_entries import ComputedEntry, ConstantEnergyAdjustment

from crystal_jax.errors import UserError
from crystal_jax.evaluate.energy.hull import Hull, read_hull

ELEMENTS = {"Li": -1.9, "Fe": -8.3, "O": -4.9}


def random_hull(seed, count=25):
    rng = np.random.default_rng(seed)
    materials = []
    while len(materials) < count:
        amounts = {symbol: int(n) for symbol, n in zip(ELEMENTS, rng.integers(0, 4, 3), strict=True) if n}
        if len(amounts) > 1:
            materials.append((amounts, float(rng.uniform(-2, 0.3))))
    return materials


def test_equals_pymatgens_phase_diagram():
    materials = random_hull(0)
    hull = Hull(materials, ELEMENTS, "test")
    entries = [PDEntry(Composition(symbol), energy) for symbol, energy in ELEMENTS.items()]
    for amounts, formation in materials:
        total = formation * sum(amounts.values()) + sum(n * ELEMENTS[s] for s, n in amounts.items())
        entries.append(PDEntry(Composition(amounts), total))
    diagram = PhaseDiagram(entries)
    for formula in ("LiFeO2", "Li2O", "Fe3O4", "Li7Fe2O9", "FeO"):
        composition = Composition(formula)
        expected = -5.0 - diagram.get_hull_energy_per_atom(composition)
        assert hull.height(composition, -5.0).above == pytest.approx(expected, abs=1e-9)


def test_by_hand():
    hull = Hull([({"Li": 2, "O": 1}, -2.0), ({"Li": 1, "O": 1}, -1.0)], ELEMENTS, "test")
    at = hull.height(Composition("Li2O"), 2 / 3 * -1.9 + 1 / 3 * -4.9 - 1.9)
    assert at.above == pytest.approx(0.1)
    assert at.formation_energy == pytest.approx(-1.9)
    assert (at.known_in_system, at.decomposition) == (2, (("Li2O", pytest.approx(1.0)),))
    # Half-way to oxygen: LiO lies above the line from Li2O to O, which is at -1.5 there.
    between = hull.height(Composition("LiO"), -3.4 - 1.5)
    assert between.above == pytest.approx(0, abs=1e-9)
    assert dict(between.decomposition) == pytest.approx({"Li2O": 0.75, "O": 0.25})
    assert hull.height(Composition("Li2O"), -9).above < 0
    assert hull.height(Composition("Li"), -1.8).above == pytest.approx(0.1)
    new = hull.height(Composition("LiFe"), -5.1)
    assert (new.above, new.known_in_system) == (pytest.approx(0), 0)


def test_the_lowest_of_a_composition_counts():
    twice = [({"Li": 2, "O": 1}, -1.0), ({"Li": 4, "O": 2}, -2.0)]
    assert Hull(twice, ELEMENTS, "").height(Composition("Li2O"), -2.9).formation_energy == pytest.approx(0)
    assert Hull(twice, ELEMENTS, "").size == 1


def test_an_element_without_energy():
    with pytest.raises(ValueError, match="no reference energy of Cu"):
        Hull([], ELEMENTS, "").height(Composition("CuO"), -1)


@pytest.fixture
def files(tmp_path):
    entries = {symbol: ComputedEntry(symbol, energy) for symbol, energy in ELEMENTS.items()}
    dumpfn(entries, tmp_path / "some-elemental-reference-entries.json.gz")
    rows = [{"composition": json.dumps({"Li": 2 / 3, "O": 1 / 3}), "formation_energy_per_atom": -2.0}]
    rows += [{"composition": "FeO", "formation_energy_per_atom": -1.4}]
    pd.DataFrame(rows).to_csv(tmp_path / "hull.csv.gz", index=False)
    return tmp_path


def test_reads_a_table_with_the_elements_beside_it(files):
    hull = read_hull(files / "hull.csv.gz")
    assert (hull.size, hull.elements) == (2, ELEMENTS)
    assert hull.source.startswith("hull.csv.gz, SHA-256 ")
    assert hull.systems() == {frozenset({"Li", "O"}), frozenset({"Fe", "O"})}


@pytest.mark.parametrize("form", ["list", "by id", "table"])
def test_reads_computed_entries(tmp_path, form):
    entries = [ComputedEntry(symbol, energy) for symbol, energy in ELEMENTS.items()]
    entries += [ComputedEntry("Li4O2", 6 * -2.0 + 4 * -1.9 + 2 * -4.9), ComputedEntry("Li2", 2 * -1.0)]
    if form == "table":  # Matbench Discovery's, which pandas wrote
        rows = [{"material_id": f"mp-{i}", "entry": entry.as_dict()} for i, entry in enumerate(entries)]
        pd.DataFrame(rows).to_json(tmp_path / "entries.json", default_handler=str)
    else:
        dumpfn(entries if form == "list" else dict(enumerate(entries)), tmp_path / "entries.json")
    hull = read_hull(tmp_path / "entries.json")
    assert hull.height(Composition("Li2O"), 2 / 3 * -1.9 + 1 / 3 * -4.9 - 2).above == pytest.approx(0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.csv", None, "no such file of known materials"),
        ("hull.txt", "x", r"are read from \.csv"),
        ("ppd.pkl.gz", "x", r"a pickle may hold any program.*computed-structure-entries"),
        ("other.csv", "a,b\n1,2\n", "not a table of composition"),
        ("words.csv", "composition,formation_energy_per_atom\nwhat?,1\n", "not a table of composition"),
        ("entries.json", "[1, 2]", "not a JSON file of pymatgen's computed entries"),
    ],
)
def test_bad_files(files, name, content, message):
    if content is not None:
        (files / name).write_text(content)
    with pytest.raises(UserError, match=message) as error:
        read_hull(files / name)
    assert "\n" not in str(error.value)


def test_a_table_without_elements(tmp_path):
    (tmp_path / "hull.csv").write_text("composition,formation_energy_per_atom\nLi2O,-2\n")
    with pytest.raises(UserError, match="pass --hull_elements=FILE"):
        read_hull(tmp_path / "hull.csv")


def test_heights_of_known_materials_are_the_materials_projects(shared):
    """500 rows of mp20_open with their DFT energies; the file's makers state 4 meV/atom for MP-20."""
    table = pd.read_csv(shared / "data/mp20_open/test.csv.gz", nrows=500)
    hull = read_hull(shared / "data/hull/mp_dft_hull_reference_41397.csv.gz")
    errors, same = [], []
    for formula, formation, expected in zip(
        table["pretty_formula"], table["formation_energy_per_atom"], table["e_above_hull"], strict=True
    ):
        composition = Composition(formula)
        shares = composition.fractional_composition.get_el_amt_dict()
        energy = formation + sum(share * hull.elements[symbol] for symbol, share in shares.items())
        above = hull.height(composition, energy).above
        errors.append(abs(above - expected))
        same.append((above < 0.1) == (expected < 0.1))
    assert np.mean(errors) < 0.004
    assert np.mean(same) > 0.99


def test_energies_of_other_functionals_are_left_out(tmp_path):
    """As of R2SCAN in the Materials Project's files, whose zero is another."""
    entries = [ComputedEntry(symbol, energy, parameters={"run_type": "GGA"}) for symbol, energy in ELEMENTS.items()]
    below = 6 * -2.0 + 4 * -1.9 + 2 * -4.9
    mixed = ConstantEnergyAdjustment(-1.0, name="MP GGA(+U)/R2SCAN mixing adjustment")
    entries += [
        ComputedEntry("Li4O2", below, parameters={"run_type": "GGA+U"}),
        ComputedEntry("Li4O2", below - 50, parameters={"run_type": "R2SCAN"}),
        ComputedEntry("Li4O2", below - 50, parameters={"run_type": "GGA"}, energy_adjustments=[mixed]),
    ]
    dumpfn(entries, tmp_path / "entries.json")
    height = read_hull(tmp_path / "entries.json").height(Composition("Li2O"), 2 / 3 * -1.9 + 1 / 3 * -4.9 - 2)
    assert height.above == pytest.approx(0)
    dumpfn([entry for entry in entries if entry.parameters["run_type"] == "R2SCAN"], tmp_path / "other.json")
    with pytest.raises(UserError, match="no entry is of GGA"):
        read_hull(tmp_path / "other.json")
