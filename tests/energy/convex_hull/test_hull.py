import bz2
import contextlib
import gzip
import json
import lzma
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from monty.json import MontyEncoder
from monty.serialization import dumpfn
from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.core import Composition
from pymatgen.entries.computed_entries import (
    CompositionEnergyAdjustment,
    ComputedEntry,
    ConstantEnergyAdjustment,
    TemperatureEnergyAdjustment,
)

from crystal_jax.energy.convex_hull.hull import Hull, read_hull
from crystal_jax.errors import UserError

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
        ("other.csv", "a,b\n1,2\n", "it has no column composition, formation_energy_per_atom"),
        ("words.csv", "composition,formation_energy_per_atom\nwhat?,1\n", "row 1: composition 'what.' is no formula"),
        ("nan.csv", "composition,formation_energy_per_atom\nNaN,nan\n", "row 1: .* is 'nan', not a finite number"),
        ("long.csv", "composition,formation_energy_per_atom\nNaCl,1,2\n", "row 1 has more cells than the header"),
        ("short.csv", "composition,formation_energy_per_atom\nNaCl\n", "row 1 has fewer cells than the header"),
        ("nul.csv", "composition,formation_energy_per_atom\nNa\0Cl,1\n", "holds NUL bytes"),
        ("entries.json", "[1, 2]", "entry 0 is 1, not an object"),
        ("null.json", "null", "holds null, not a list of computed entries"),
        ("empty.json", "[]", "holds no computed entry"),
        ("cut.json", '[{"composition": ', "is damaged"),
        ("deep.json", "[" * 100_000, "is damaged"),
        ("notgz.json.gz", "[]", "is damaged"),
        ("lfs.json.gz", "version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS.*git lfs pull"),
        ("noenergy.json", '[{"composition": {"Na": 1}}]', "entry 0: energy is missing"),
        ("null.energy.json", '{"mp-1": {"composition": {"Na": 1}, "energy": null}}', "entry mp-1: energy is null"),
        ("inf.json", '[{"composition": {"Na": 1}, "energy": Infinity}]', "energy is inf, not a finite number"),
        ("huge.json", '[{"composition": {"Na": 1}, "energy": 1' + "0" * 400 + "}]", "not a finite number"),
        ("minus.json", '[{"composition": {"Na": -1}, "energy": 1}]', "composition has -1 of Na, not an amount"),
        ("ghost.json", '[{"composition": {"Qq": 1}, "energy": 1}]', "composition has 'Qq', which is no element"),
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


OTHER_FUNCTIONALS = [
    "PBEsol",
    "PBESOL_U",
    "PBEsol+U",
    "PBE0",
    "PBE+vdW-DFT-D3-BJ",
    "PBE+vdW",
    "revPBE",
    "rev-PBE",
    "HSE06",
    "HF",
    "SCAN",
    "r2SCAN",
    "R2SCAN+U",
    "LDA",
    "LDA_U",
    "RunType.PBESOL",
    "optB88-vdW",
    "AM05",
    "GW",
    "GGA+HSE",
]
SALT = {"composition": {"Na": 1, "Cl": 1}, "energy": -7.35}  # -2.1 eV/atom of formation


def entries_of_salt(**other):
    """Plain entries of salt and its elements, and one of salt far below, of another kind."""
    found = [{"composition": {"Na": 1}, "energy": -1.3}, {"composition": {"Cl": 1}, "energy": -1.85}, SALT]
    return [*found, SALT | {"energy": -9.35} | other] if other else found


def formation_of_salt(hull):
    return hull.height(Composition("NaCl"), -1.575).above * -1


@pytest.mark.parametrize("run_type", ["GGA", "GGA+U", "PBE", "PBE+U", "PBE_U", "GGA_U", "RunType.GGA", None, ""])
def test_pbe_and_entries_that_state_no_functional_count(tmp_path, run_type):
    member = {"@module": "emmet.core.types.enums", "@class": "RunType", "value": run_type}
    for stated in ({"run_type": run_type}, {"run_type": member}):
        (tmp_path / "entries.json").write_text(json.dumps(entries_of_salt(parameters=stated)))
        assert formation_of_salt(read_hull(tmp_path / "entries.json")) == pytest.approx(-3.1)


@pytest.mark.parametrize(
    "run_type",
    OTHER_FUNCTIONALS,
)
def test_other_functionals_do_not_count(tmp_path, run_type):
    member = {"@module": "emmet.core.types.enums", "@class": "RunType", "value": run_type}
    for stated in ({"run_type": run_type}, {"run_type": member}):
        (tmp_path / "entries.json").write_text(json.dumps(entries_of_salt(parameters=stated)))
        assert formation_of_salt(read_hull(tmp_path / "entries.json")) == pytest.approx(-2.1)


@pytest.mark.parametrize("layout", ["alexandria", "thermo", "structures", "charged", "formula"])
@pytest.mark.parametrize("ending", [".json", ".json.gz", ".json.bz2", ".json.xz"])
def test_layouts_of_entries(tmp_path, layout, ending):
    rows = entries_of_salt()
    if layout == "alexandria":
        found = {"entries": rows}
    elif layout == "thermo":
        found = [{"material_id": f"mp-{i}", "entries": {"GGA": row}} for i, row in enumerate(rows)]
        found.append({"material_id": "mp-9", "entries": {"R2SCAN": SALT | {"energy": -99}}})
    elif layout == "structures":
        sites = [[{"element": s, "occu": 1}] for s in ("Na", "Cl")]
        found = [*rows[:2], {"energy": -7.35, "structure": {"sites": [{"species": each} for each in sites]}}]
    elif layout == "charged":
        found = [*rows[:2], SALT | {"composition": {"Na+": 1, "Cl-": 1}}]
    else:
        found = [*rows[:2], SALT | {"composition": "NaCl"}]
    opener = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(Path(ending).suffix, open)
    with opener(tmp_path / f"hull{ending}", "wt") as file:
        json.dump(found, file)
    assert formation_of_salt(read_hull(tmp_path / f"hull{ending}")) == pytest.approx(-2.1)


def test_corrections_equal_pymatgens(tmp_path):
    adjustments = [
        ConstantEnergyAdjustment(-0.5),
        CompositionEnergyAdjustment(-0.3, 2, name="oxide"),
        TemperatureEnergyAdjustment(0.001, 300, 2, name="heat"),
    ]
    for entry in (
        ComputedEntry("NaCl", -7.0, energy_adjustments=adjustments),
        ComputedEntry("NaCl", -7.0, correction=-0.7),
        ComputedEntry("NaCl", -7.0),
    ):
        rows = [*entries_of_salt()[:2], json.loads(json.dumps(entry.as_dict(), cls=MontyEncoder))]
        (tmp_path / "entries.json").write_text(json.dumps(rows))
        expected = entry.energy_per_atom + 1.575
        assert formation_of_salt(read_hull(tmp_path / "entries.json")) == pytest.approx(expected)
    nameless = SALT | {"energy_adjustments": [{"name": "secret"}]}
    (tmp_path / "entries.json").write_text(json.dumps([nameless]))
    with pytest.raises(UserError, match="entry 0: adjustment 'secret' states no value"):
        read_hull(tmp_path / "entries.json")


@pytest.mark.parametrize("place", ["data", "parameters", "energy_adjustments", "composition", "entry", "structure"])
def test_a_file_of_entries_runs_no_code(tmp_path, monkeypatch, place):
    (tmp_path / "spy_module.py").write_text("raise SystemExit('the file was obeyed')\n")
    monkeypatch.syspath_prepend(tmp_path)
    call = {"@module": "spy_module", "@class": "Spy", "@callable": "run", "value": 0.0}
    values = {
        "data": {"data": {"x": call}},
        "parameters": {"parameters": {"x": call}},
        "energy_adjustments": {"energy_adjustments": [call]},
        "composition": {"composition": {"Na": 1, "Cl": 1} | call},
        "entry": call,
        "structure": {"structure": call},
    }
    rows = [*entries_of_salt()[:2], SALT | values[place]]
    (tmp_path / "entries.json").write_text(json.dumps(rows))
    with contextlib.suppress(UserError):  # "@module" is no element
        assert formation_of_salt(read_hull(tmp_path / "entries.json")) == pytest.approx(-2.1)
    assert "spy_module" not in sys.modules


def test_blank_rows_of_a_table(files):
    text = "composition,formation_energy_per_atom\r\n,\r\nFeO,-1.4\r\n\r\n,\r\n"
    (files / "blank.csv").write_text(text)
    assert read_hull(str(files / "blank.csv")).size == 1
    (files / "nan.csv").write_text("composition,formation_energy_per_atom\nNaN,-0.1\n")  # sodium nitride
    assert read_hull(files / "nan.csv").systems() == {frozenset({"Na", "N"})}


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
