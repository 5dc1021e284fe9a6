"""A run of VASP, cut down to what its reader needs, goes there and back."""

import errno
import json

import numpy as np
import pandas as pd
import pytest
from pymatgen.core import Structure
from pymatgen.io.vasp import Poscar

from crystal_jax import cli
from crystal_jax.dft.vasp_inputs import write_inputs
from crystal_jax.dft.vasp_results import collect_results
from crystal_jax.energy.convex_hull.hull import Hull
from crystal_jax.energy.relaxation.journal import key_of
from crystal_jax.errors import UserError
from crystal_jax.evaluate.columns import COLUMNS
from crystal_jax.evaluate.metrics import dft_runs

_VERDICTS = {name: True for name, kind in COLUMNS.items() if kind == "bool"} | {"unique": True}
HULL = Hull([({"Na": 1, "Cl": 1}, -2.1)], {"Na": -1.3, "Cl": -1.8}, "test")


@pytest.fixture
def evaluation(tmp_path, salt):
    """As 'evaluate' leaves it: salt on the hull, salt far above it, and a failure."""
    wider = salt.copy()
    wider.scale_lattice(200)
    texts = [salt.to(fmt="cif"), wider.to(fmt="cif"), ""]
    pd.DataFrame({"name": ["a", "b", "c"], "cif": texts}).to_csv(tmp_path / "samples.csv", index=False)
    folder = tmp_path / "evaluation"
    (folder / "relaxations").mkdir(parents=True)
    journal = [{"key": key_of(text), "relaxed_cif": text} for text in texts[:2]]
    (folder / "relaxations/x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in journal))
    rows = pd.DataFrame({"name": ["a", "b", "c"], "reduced_formula": ["NaCl"] * 3, "e_above_hull": [0.01, 0.4, None]})
    rows["formula"] = "Na4 Cl4"
    rows = rows.reindex(columns=list(COLUMNS)).assign(**_VERDICTS)
    rows.to_csv(folder / "structures.csv", index=False)
    metrics = {
        "samples": {"path": str(tmp_path / "samples.csv")},
        "metastable": {"value": 1 / 3, "hits": 1, "total": 3},
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def vasprun(structure, energy, *, steps=1, allowed=60, functional="--", ediffg=-0.01, force=0.0, drop=0.0):
    """The file that VASP would write: no electrons, and ionic steps, each lower in energy by `drop` eV."""

    def vectors(name, rows):
        lines = "".join(f"<v>{x:.8f} {y:.8f} {z:.8f}</v>" for x, y, z in rows)
        return f'<varray name="{name}">{lines}</varray>'

    atoms = "".join(
        f"<rc><c>{site.specie.symbol}</c><c>{1 + (site.specie.symbol == 'Cl')}</c></rc>" for site in structure
    )
    kinds = "".join(
        f"<rc><c>4</c><c>{symbol}</c><c>{mass}</c><c>1</c><c>PAW_PBE {potcar} 08Apr2002</c></rc>"
        for symbol, mass, potcar in (("Na", 22.99, "Na_pv"), ("Cl", 35.45, "Cl"))
    )
    lattice = structure.lattice
    crystal = f"""<structure>
      <crystal>{vectors("basis", lattice.matrix)}<i name="volume">{lattice.volume:.8f}</i>
      {vectors("rec_basis", lattice.reciprocal_lattice_crystallographic.matrix)}</crystal>
      {vectors("positions", structure.frac_coords)}</structure>"""
    initial = crystal.replace("<structure>", '<structure name="initialpos">')
    final = crystal.replace("<structure>", '<structure name="finalpos">')
    forces = vectors("forces", np.eye(8, 3) * force)
    calculations = ""
    for step in range(steps):
        now = energy + drop * (steps - 1 - step)
        energies = f'<i name="e_fr_energy">{now}</i><i name="e_wo_entrp">{now}</i><i name="e_0_energy">{now}</i>'
        electronic = f"<scstep><energy>{energies}</energy></scstep>"
        calculations += f"<calculation>{electronic * 2}{crystal}{forces}{vectors('stress', np.eye(3))}"
        calculations += f"<energy>{energies}</energy></calculation>"
    return f"""<?xml version="1.0" encoding="ISO-8859-1"?>
<modeling>
 <generator><i name="program" type="string">vasp</i><i name="version" type="string">6.4.2</i>
  <i name="date" type="string">2026 01 01</i><i name="time" type="string">00:00:00</i></generator>
 <incar><i type="int" name="NSW">{allowed}</i><i type="int" name="NELM">100</i></incar>
 <kpoints><generation param="Gamma"><v type="int" name="divisions">4 4 4</v></generation>
  <varray name="kpointlist"><v>0 0 0</v></varray><varray name="weights"><v>1</v></varray></kpoints>
 <parameters><i type="int" name="NSW">{allowed}</i><i type="int" name="NELM">100</i><i type="int" name="IBRION">2</i>
  <i name="EDIFF">0.0001</i><i name="EDIFFG">{ediffg}</i><i type="int" name="ISPIN">1</i>
  <i type="logical" name="LDAU">F</i>
  <i name="AEXX">0</i><i name="HFSCREEN">0</i><i type="logical" name="LHFCALC">F</i>
  <i type="string" name="GGA">{functional}</i><i type="int" name="ISIF">3</i></parameters>
 <atominfo><atoms>8</atoms><types>2</types>
  <array name="atoms"><field type="string">element</field><field type="int">atomtype</field><set>{atoms}</set></array>
  <array name="atomtypes"><field>atomspertype</field><field>element</field><field>mass</field><field>valence</field>
   <field>pseudopotential</field><set>{kinds}</set></array></atominfo>
 {initial}
 {calculations}
 {final}
</modeling>"""


def test_inputs_are_the_materials_projects(evaluation, tmp_path, salt):
    manifest = pd.read_csv(write_inputs(evaluation, output=tmp_path / "runs"))
    assert manifest["folder"].tolist() == ["00000_NaCl"]
    assert manifest["name"].tolist() == ["a"]
    assert manifest["potcar"].tolist() == ["Na_pv Cl"]
    folder = tmp_path / "runs/00000_NaCl"
    assert {path.name for path in folder.iterdir()} == {"INCAR", "KPOINTS", "POSCAR", "POTCAR.spec"}
    assert Poscar.from_file(folder / "POSCAR").structure.matches(salt)
    assert "ENCUT = 520" in (folder / "INCAR").read_text()
    both = pd.read_csv(write_inputs(evaluation, output=tmp_path / "all", below=1.0))
    assert both["name"].tolist() == ["a", "b"]


def test_there_and_back(evaluation, tmp_path, salt):
    write_inputs(evaluation, output=tmp_path / "runs", below=1.0)
    # eV/atom: salt's chlorine is corrected by -0.614 eV, which makes it 0.2 below and 0.3 above the hull of the test.
    corrected = np.array([-1.55 - 2.1 - 0.2, -1.55 - 2.1 + 0.3])
    # VASP calls PBE "--" where it takes it from POTCAR, "PE" where INCAR says so.
    for folder, energy, name in zip(("00000_NaCl", "00001_NaCl"), corrected + 0.307, ("--", "PE"), strict=True):
        (tmp_path / "runs" / folder / "vasprun.xml").write_text(vasprun(salt, 8 * energy, functional=name))
    added = collect_results(evaluation, runs=tmp_path / "runs", hull=HULL)
    assert added["stable_dft"] == {"value": 1 / 3, "hits": 1, "total": 3}
    assert added["dft_status_counts"] == {"converged": 2}
    rows = pd.read_csv(evaluation / "structures.csv", dtype=COLUMNS)
    assert rows["e_above_hull_dft"][:2].tolist() == pytest.approx([-0.2, 0.3], abs=1e-3)
    assert json.loads((evaluation / "metrics.json").read_text())["stable_dft"]["hits"] == 1
    again = collect_results(evaluation, runs=tmp_path / "runs", hull=HULL)
    assert again == added
    ranked = pd.read_csv(evaluation / "candidates.csv")
    assert ranked["e_above_hull_dft"][:2].tolist() == pytest.approx([-0.2, 0.3], abs=1e-3)


def test_what_was_found_outlives_a_new_evaluation_of_the_same_samples(evaluation, tmp_path, salt):
    write_inputs(evaluation, output=tmp_path / "runs", below=1.0)
    (tmp_path / "runs/00001_NaCl/vasprun.xml").write_text(vasprun(salt, 8 * (-1.55 - 2.1 - 0.2 + 0.307)))
    added = collect_results(evaluation, runs=tmp_path / "runs", hull=HULL)
    fresh = pd.read_csv(evaluation / "structures.csv", dtype=COLUMNS).assign(
        dft_status=None, e_above_hull_dft=float("nan")
    )
    assert dft_runs.metrics_of(fresh, 3) == {}
    fresh = fresh.assign(**dft_runs.dft_columns(fresh, evaluation))
    assert dft_runs.metrics_of(fresh, 3) == added
    assert fresh["dft_status"].tolist()[:2] == ["no vasprun.xml", "converged"]
    other = fresh.assign(formula="K4 Cl4", dft_status=None, e_above_hull_dft=float("nan"))
    other = other.assign(**dft_runs.dft_columns(other, evaluation))  # another crystal of the same name
    assert dft_runs.metrics_of(other, 3) == {}


@pytest.mark.parametrize("ending", ["no vasprun.xml", "unreadable", "not converged", "another crystal"])
def test_bad_runs_have_names_and_are_not_stable(evaluation, tmp_path, salt, ending):
    write_inputs(evaluation, output=tmp_path / "runs")
    file = tmp_path / "runs/00000_NaCl/vasprun.xml"
    good = vasprun(salt, -80.0)
    if ending == "unreadable":
        file.write_text(good[:2000])
    elif ending == "not converged":
        file.write_text(vasprun(salt, -80.0, steps=2, allowed=2))
    elif ending == "another crystal":
        file.write_text(good.replace("<c>Na</c>", "<c>K</c>").replace("Na_pv", "K_sv"))
    added = collect_results(evaluation, runs=tmp_path / "runs", hull=HULL)
    assert added["dft_status_counts"] == {ending: 1}
    assert added["stable_dft"]["hits"] == 0


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        ({"steps": 2, "ediffg": 0.002, "drop": 0.5}, "not converged"),  # STOPCAR, or a time limit
        ({"steps": 2, "ediffg": 0.002, "drop": 0.001}, "converged"),
        ({"steps": 1, "ediffg": 0.002}, "not converged"),  # one step has no change
        ({"steps": 5, "ediffg": -0.02, "force": 0.8}, "not converged"),
        ({"steps": 5, "ediffg": -0.02, "force": 0.01, "drop": 0.5}, "converged"),
        ({"steps": 1, "allowed": 0, "force": 0.8}, "converged"),  # a static calculation
        ({"steps": 60, "ediffg": -0.02}, "not converged"),  # all the steps that it was allowed
        ({"steps": 3, "ediffg": 0}, "not converged"),  # it runs for all its steps
    ],
)
def test_a_relaxation_has_converged_when_its_last_step_says_so(evaluation, tmp_path, salt, run, expected):
    write_inputs(evaluation, output=tmp_path / "runs")
    (tmp_path / "runs/00000_NaCl/vasprun.xml").write_text(vasprun(salt, -80.0, **run))
    assert collect_results(evaluation, runs=tmp_path / "runs", hull=HULL)["dft_status_counts"] == {expected: 1}


def with_crystals(evaluation, crystals):
    """An evaluation of other crystals, by name."""
    texts = {name: crystal.to(fmt="cif") for name, crystal in crystals.items()}
    pd.DataFrame({"name": list(texts), "cif": list(texts.values())}).to_csv(
        evaluation.parent / "samples.csv", index=False
    )
    journal = [{"key": key_of(text), "relaxed_cif": text} for text in texts.values()]
    (evaluation / "relaxations/x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in journal))
    rows = pd.DataFrame({"name": list(crystals), "e_above_hull": 0.01})
    rows["formula"] = [crystal.formula for crystal in crystals.values()]
    rows["reduced_formula"] = [crystal.composition.reduced_formula for crystal in crystals.values()]
    rows = rows.reindex(columns=list(COLUMNS)).assign(**_VERDICTS)
    rows.to_csv(evaluation / "structures.csv", index=False)


def test_elements_without_a_pseudopotential_are_named_and_the_others_written(evaluation, tmp_path, salt, capsys):
    polonium, sodium = Structure(3.3 * np.eye(3), ["Po"], [[0, 0, 0]]), Structure(3.3 * np.eye(3), ["Na"], [[0, 0, 0]])
    with_crystals(evaluation, {"a": polonium, "b": sodium})
    manifest = pd.read_csv(write_inputs(evaluation, output=tmp_path / "runs"))
    assert manifest["folder"].tolist() == ["00000_Na"]
    assert "left out: a: MPRelaxSet has no POTCAR of Po" in capsys.readouterr().err
    with_crystals(evaluation, {"a": polonium})
    with pytest.raises(UserError, match="every crystal has an element without a POTCAR in MPRelaxSet"):
        write_inputs(evaluation, output=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_failed_write_does_not_block_the_next_try(evaluation, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("crystal_jax.dft.vasp_inputs.MPRelaxSet.write_input", fail)
        with pytest.raises(UserError, match="No space left on device"):
            write_inputs(evaluation, output=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    assert write_inputs(evaluation, output=tmp_path / "runs").is_file()


@pytest.mark.parametrize("name", ["NaN", "NA", "null", "None", "nan"])
def test_names_that_look_like_missing_values(evaluation, tmp_path, salt, name):
    nitride = Structure(4.9 * np.eye(3), ["Na", "N"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    with_crystals(evaluation, {name: nitride, "salt": salt})
    manifest = pd.read_csv(write_inputs(evaluation, output=tmp_path / "runs"), keep_default_na=False)
    assert manifest["name"].tolist() == [name, "salt"]
    assert manifest["folder"].tolist() == ["00000_NaN", "00001_NaCl"]
    added = collect_results(evaluation, runs=tmp_path / "runs", hull=HULL)
    assert added["dft_status_counts"] == {"no vasprun.xml": 2}
    fresh = pd.DataFrame({"name": [name], "formula": ["Na1 N1"]}).assign(dft_status=None, e_above_hull_dft=float("nan"))
    fresh = fresh.assign(**dft_runs.dft_columns(fresh, evaluation))
    assert fresh["dft_status"].tolist() == ["no vasprun.xml"]


def test_command_line(evaluation, tmp_path, salt, capsys, monkeypatch):
    runs, reported = tmp_path / "runs", []
    monkeypatch.setattr("crystal_jax.report.html.write_report", lambda folder: reported.append(str(folder)))
    assert cli.main(["dft", "write", f"--evaluation={evaluation}", f"--output={runs}"]) == 0
    assert f"1 calculations; written: {runs}/manifest.csv" in capsys.readouterr().out
    assert cli.main(["dft", "write", f"--evaluation={evaluation}", f"--output={runs}"]) == 1
    assert "is not empty; choose another --output" in capsys.readouterr().err
    entries = [{"composition": {s: 1}, "energy": e, "correction": 0} for s, e in HULL.elements.items()]
    (tmp_path / "x-elemental-reference-entries.json").write_text(json.dumps(entries))
    (tmp_path / "hull.csv").write_text("composition,formation_energy_per_atom\nNaCl,-2.1\n")
    (runs / "00000_NaCl/vasprun.xml").write_text(vasprun(salt, 8 * (-1.55 - 2.1 - 0.2 + 0.307)))
    arguments = [f"--evaluation={evaluation}", f"--runs={runs}", f"--hull={tmp_path / 'hull.csv'}"]
    assert cli.main(["dft", "collect", *arguments]) == 0
    assert "stable by DFT: 1 of 3 samples" in capsys.readouterr().out
    assert reported == [str(evaluation)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", r"metrics\.json is a list, not an object"),
        ('{"metastable": null, "samples": null}', "metastable is null|samples is null"),
        (
            '{"metastable": {"total": "3"}, "samples": {"path": 3}}',
            "total is '3', not a whole number|path is 3, not a text",
        ),
        ("{", "is damaged"),
    ],
)
def test_damaged_metrics_are_one_line(evaluation, tmp_path, content, message):
    write_inputs(evaluation, output=tmp_path / "runs")
    (evaluation / "metrics.json").write_text(content)
    with pytest.raises(UserError, match=message):
        collect_results(evaluation, runs=tmp_path / "runs", hull=HULL)
    with pytest.raises(UserError, match=message):
        write_inputs(evaluation, output=tmp_path / "again")


def test_folders_of_something_else(evaluation, tmp_path):
    with pytest.raises(UserError, match="is this the --output of 'crystal-jax evaluate'"):
        write_inputs(tmp_path / "nowhere", output=tmp_path / "runs")
    with pytest.raises(UserError, match=r"has no manifest\.csv"):
        collect_results(evaluation, runs=tmp_path, hull=HULL)
    rows = pd.read_csv(evaluation / "structures.csv")
    rows.assign(e_above_hull=None).to_csv(evaluation / "structures.csv", index=False)
    with pytest.raises(UserError, match="has no energies above the hull"):
        write_inputs(evaluation, output=tmp_path / "runs")
