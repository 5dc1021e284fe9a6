import json

import numpy as np
import pandas as pd
import pytest
from pymatgen.core import Lattice, Structure

from crystal_jax import cli
from crystal_jax.energy.model import Prediction
from crystal_jax.energy.relaxation import runner
from crystal_jax.errors import UserError
from crystal_jax.evaluate import inputs
from crystal_jax.evaluate.columns import COLUMNS
from crystal_jax.evaluate.metrics import stability
from crystal_jax.evaluate.run import evaluate

ELEMENTS = {"Na": -1.3, "Cl": -1.8, "Cs": -0.9, "Mg": -1.6, "O": -4.9}
# eV/atom that the model below gives: salt on the hull, CsCl 0.05 above it, magnesia 0.5 above it.
RAW = {"NaCl": -3.4, "CsCl": -3.2, "MgO": -5.5}


class Rigid:
    """Nothing moves; oxides of one atom crash it."""

    name, corrected, elements = "rigid", True, frozenset(range(1, 95))

    def predict(self, cells):
        return [self.one(cell) for cell in cells]

    def one(self, cell):
        formula = cell.to_structure().reduced_formula
        if formula not in RAW:
            raise RuntimeError("no such crystal")
        return Prediction(RAW[formula] * len(cell.numbers), np.zeros((len(cell.numbers), 3)), np.zeros((3, 3)))


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setattr(inputs, "load_model", lambda name, weights=None: Rigid())
    monkeypatch.setattr(runner, "_loaded", lambda *_: Rigid())


@pytest.fixture
def hull(tmp_path, monkeypatch):
    monkeypatch.setattr("crystal_jax.evaluate.inputs.load_known_materials", lambda **_: None)
    formation = {formula: RAW[formula] - np.mean([ELEMENTS[e] for e in pair]) for formula, pair in PAIRS.items()}
    formation["CsCl"] -= 0.05
    formation["MgO"] -= 0.5
    table = pd.DataFrame({"composition": formation.keys(), "formation_energy_per_atom": formation.values()})
    table.to_csv(tmp_path / "hull.csv", index=False)
    entries = [{"composition": {symbol: 1}, "energy": energy, "correction": 0} for symbol, energy in ELEMENTS.items()]
    (tmp_path / "x-elemental-reference-entries.json").write_text(json.dumps(entries))
    return tmp_path / "hull.csv"


PAIRS = {"NaCl": ("Na", "Cl"), "CsCl": ("Cs", "Cl"), "MgO": ("Mg", "O")}


@pytest.fixture
def samples(tmp_path, salt, cesium_chloride):
    """On the hull, metastable, unstable, no valid crystal, and one that crashes the model."""
    magnesia = Structure(Lattice.cubic(2.7), ["Mg", "O"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    iron = Structure(Lattice.cubic(2.8), ["Fe"], [[0, 0, 0]])
    texts = [s.to(fmt="cif") for s in (salt, cesium_chloride, magnesia)] + ["", iron.to(fmt="cif")]
    pd.DataFrame({"cif": texts}).to_csv(tmp_path / "samples.csv", index=False)
    return tmp_path / "samples.csv"


def measure(*arguments, **settings):
    return evaluate(*arguments, **settings).metrics


def rate(metrics, name):
    return metrics[name]["hits"], metrics[name]["total"]


def test_rates_and_rows(samples, hull, model, tmp_path):
    options = {"energy_model": "chgnet", "hull": hull}
    metrics = measure(samples, output=tmp_path / "out", **options, progress=False)
    assert rate(metrics, "metastable") == (2, 5)
    assert rate(metrics, "stable") == (0, 5)
    assert rate(metrics, "metastable_of_valid") == (2, 4)
    assert rate(metrics, "metastable_complete_hull") == (0, 5)  # each system has one phase in the hull
    assert rate(metrics, "relaxed") == (3, 4)
    assert metrics["relaxation_status_counts"] == {"converged": 3, "crashed": 1}
    assert metrics["failures"]["relaxation crashed"] == 1
    assert metrics["hull_coverage"] == {"2": {"systems": 3, "with_known_materials": 3}}
    assert "sun" not in metrics
    settings = metrics["settings"]["energies"]
    assert (settings["corrections"], settings["fmax"]) == ("the model's own", 0.1)
    assert settings["hull"]["materials"] == 3
    rows = pd.read_csv(tmp_path / "out/structures.csv", dtype=COLUMNS)
    assert rows["e_above_hull"][:3].tolist() == pytest.approx([0, 0.05, 0.5], abs=1e-6)
    assert rows["relaxation_status"].fillna("").tolist() == ["converged"] * 3 + ["", "crashed"]
    assert rows["decomposes_to"][0] == "1 NaCl"
    assert rows["lower_bound"][:3].tolist() == [True] * 3  # one phase each, and no list of known materials
    assert rows["relaxed_density"][0] == pytest.approx(rows["density"][0], rel=1e-3)
    table = pd.read_csv(tmp_path / "out/candidates.csv")
    assert table["cell"].tolist() == ["relaxed"] * 3 + ["generated"]
    assert table["rank"].tolist()[:3] == [1, 2, 3]
    assert rows["relaxation_rmsd"][0] == pytest.approx(0, abs=1e-6)


def test_in_paper_mode_failures_leave_the_denominator(samples, hull, model, tmp_path):
    options = {"energy_model": "chgnet", "hull": hull}
    metrics = measure(samples, output=tmp_path / "out", **options, mode="paper", progress=False)
    assert rate(metrics, "metastable") == (2, 3)
    assert rate(metrics, "relaxed") == (3, 3)  # iron has one atom


def test_unique_and_new_ones(samples, hull, model, tmp_path, salt):
    (tmp_path / "train").mkdir()
    (tmp_path / "train/salt.cif").write_text(salt.to(fmt="cif"))
    options = {"energy_model": "chgnet", "hull": hull}
    metrics = measure(
        samples, output=tmp_path / "out", **options, train_reference=str(tmp_path / "train"), progress=False
    )
    assert rate(metrics, "msun") == (1, 5)  # CsCl
    assert rate(metrics, "sun") == (0, 5)


def test_corrections_are_applied_where_the_model_has_none(samples, hull, model, tmp_path):
    metrics = measure(samples, output=tmp_path / "out", energy_model="m3gnet", hull=hull, progress=False)
    rows = pd.read_csv(tmp_path / "out/structures.csv", dtype=COLUMNS)
    assert rows["energy_per_atom"][0] == pytest.approx(-3.4 - 0.614 / 2, abs=1e-3)  # chloride
    assert rows["e_above_hull"][0] == pytest.approx(-0.307, abs=1e-3)
    assert metrics["stable"]["hits"] >= 1


def test_a_second_run_relaxes_nothing(samples, hull, model, tmp_path, monkeypatch):
    options = {"energy_model": "chgnet", "hull": hull}
    first = measure(samples, output=tmp_path / "out", **options, progress=False)
    monkeypatch.setattr(runner, "_loaded", lambda *_: pytest.fail("relaxed again"))
    again = measure(samples, output=tmp_path / "out", **options, progress=False)
    assert {**first, "date": "", "seconds": 0} == {**again, "date": "", "seconds": 0}


def test_without_a_hull_there_are_energies_only(samples, model, tmp_path):
    metrics = measure(samples, output=tmp_path / "out", energy_model="chgnet", progress=False)
    assert "metastable" not in metrics
    assert rate(metrics, "relaxed") == (3, 4)


def test_an_element_that_the_hull_does_not_know(samples, hull, model, tmp_path):
    entries = tmp_path / "x-elemental-reference-entries.json"
    entries.write_text(json.dumps([e for e in json.loads(entries.read_text()) if "Cs" not in e["composition"]]))
    metrics = measure(samples, output=tmp_path / "o", energy_model="chgnet", hull=hull, progress=False)
    rows = pd.read_csv(tmp_path / "o/structures.csv", dtype=COLUMNS)
    assert rows["failure_reason"][1] == "no energy above the hull: no reference energy of Cs"
    # What relaxation found is kept all the same.
    assert rows["relaxed_spacegroup"][1] == 221
    assert rows["energy_per_atom"][1] == pytest.approx(-3.2)
    assert rate(metrics, "relaxed") == (3, 4)
    assert rate(metrics, "metastable") == (1, 5)


def test_command_line(samples, hull, model, tmp_path, capsys):
    out = f"--output={tmp_path / 'out'}"
    arguments = ["evaluate", f"--samples={samples}", out, "--energy_model=chgnet", f"--hull={hull}", "--noprogress"]
    assert cli.main(arguments) == 0
    assert "metastable                 40.00 %   2 of 5" in capsys.readouterr().out
    assert cli.main([*arguments, "--fmax=0.2"]) == 1
    assert "relaxations of another settings; choose another --output" in capsys.readouterr().err
    assert cli.main(["evaluate", f"--samples={samples}", out, f"--hull={hull}"]) == 1
    assert "--hull needs --energy_model" in capsys.readouterr().err


def test_options_are_whole():
    with pytest.raises(UserError):
        evaluate("nowhere.csv", output="x", energy_model="chgnet")
    assert stability.METASTABLE == 0.1
