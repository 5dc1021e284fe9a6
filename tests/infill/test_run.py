import csv
import dataclasses
import json
from collections import Counter

import numpy as np
import pytest
from pymatgen.core import Composition, Structure

from crystal_jax.checkpoint.workdir import read_experiment
from crystal_jax.cli import main
from crystal_jax.errors import UserError
from crystal_jax.evaluate.chemistry.oxidation import load_oxidation_table
from crystal_jax.evaluate.chemistry.validity import compositional_invalid_reason
from crystal_jax.infill.radii import elements_of_similar_radius
from crystal_jax.infill.replacements import propose
from crystal_jax.infill.run import infill
from crystal_jax.score.crystals import crystal_of, spelled
from crystal_jax.structures import Entry
from crystal_jax.text.crystal_text import ELEMENTS, Crystal
from tests.rock_salts import write_rock_salts


@pytest.fixture(scope="module")
def magnesia(tmp_path_factory):
    return write_rock_salts(tmp_path_factory.mktemp("infill") / "cifs") / "MgO_0.cif"


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_element_has_a_row_and_the_likely_ones_a_crystal(trained, magnesia, tmp_path, capsys):
    output = tmp_path / "out"
    arguments = [f"--checkpoint={trained}", f"--cif={magnesia}", f"--output={output}", "--element=Mg", "--top_k=5"]
    assert main(["infill", *arguments]) == 0
    shown = capsys.readouterr().out.splitlines()
    rows = rows_of(output / "elements.csv")
    assert [line.split()[0] for line in shown[1:6]] == [row["symbol"] for row in rows[:5]]
    assert sorted(row["symbol"] for row in rows) == sorted(ELEMENTS)
    probabilities = np.array([float(row["probability"]) for row in rows])
    assert probabilities.sum() == pytest.approx(1)
    assert (np.diff(probabilities) <= 0).all()
    log_probs = np.array([float(row["log_prob"]) for row in rows])
    np.testing.assert_allclose(probabilities, np.exp(log_probs) / np.exp(log_probs).sum(), rtol=1e-6)
    assert np.exp(log_probs).sum() < 1  # the rest is on texts that are no element
    baseline = {row["symbol"]: float(row["baseline"]) for row in rows}
    assert {symbol for symbol, share in baseline.items() if share} == set(elements_of_similar_radius("Mg"))
    assert sum(baseline.values()) == pytest.approx(1)
    expected = {row["symbol"] for row in rows[:5]} - {"Mg"}
    given = Structure.from_file(magnesia)
    written = {path.name.split("_")[1]: Structure.from_file(path) for path in (output / "cif").glob("*.cif")}
    assert written.keys() == expected
    for symbol, structure in written.items():
        assert sorted(site.specie.symbol for site in structure) == sorted([symbol, "O"])
        np.testing.assert_allclose(structure.lattice.parameters, given.lattice.parameters, atol=1e-4)
    run = json.loads((output / "run.json").read_text())
    assert "[MASK]\n0.00 0.00 0.00" in run["request"]["prompt"]
    assert run["provenance"]["elements_scored"] == len(ELEMENTS)
    assert list(run["request"]) == [  # a folder of an earlier version goes on only if its request is the same
        *("checkpoint", "step", "cif", "cif_sha256", "element", "prompt", "temperature", "top_k", "constraints"),
        *("radius_tolerance", "oxidation_states", "text_format", "coordinates", "order", "tokenizer"),
    ]


def test_the_radius_rule_limits_what_is_proposed(trained, magnesia, tmp_path):
    assert [site.specie.symbol for site in Structure.from_file(magnesia)] == ["Mg", "O"]
    free = rows_of(infill(trained, cif=magnesia, output=tmp_path / "free", site=0))
    ruled = rows_of(
        infill(trained, cif=magnesia, output=tmp_path / "ruled", site=0, constraints=["radius"], temperature=0.5)
    )
    allowed = [row for row in ruled if row["allowed"] == "True"]
    assert {row["symbol"] for row in allowed} == set(elements_of_similar_radius("Mg"))
    assert ruled[: len(allowed)] == allowed
    assert sum(float(row["probability"]) for row in allowed) == pytest.approx(1)
    assert all(float(row["probability"]) == 0 for row in ruled[len(allowed) :])
    model = {row["symbol"]: float(row["probability"]) for row in free}
    one, other = allowed[0], allowed[-1]
    ratio = float(one["probability"]) / float(other["probability"])
    assert ratio == pytest.approx((model[one["symbol"]] / model[other["symbol"]]) ** 2, rel=1e-4)
    assert len(list((tmp_path / "ruled/cif").glob("*.cif"))) == min(10, len(allowed))


def test_nothing_that_is_admitted_can_be_spelled():
    with pytest.raises(UserError, match="no element that the tokenizer can spell"):
        propose({"Na": -1.0}, ["K"], ["K"], temperature=1.0)


def test_the_charge_rule_limits_what_is_proposed(trained, magnesia, tmp_path):
    rows = rows_of(infill(trained, cif=magnesia, output=tmp_path / "out", element="Mg", constraints=["charge"]))
    table = load_oxidation_table()
    for row in rows:
        counts = Counter([row["symbol"], "O"])  # oxygen in the place of magnesium is an element
        assert (row["allowed"] == "True") == (compositional_invalid_reason(Composition(counts), table) is None)
    assert {row["allowed"] for row in rows} == {"True", "False"}


def test_sites_are_sorted_where_the_model_was_trained_so(trained):
    crystal = Crystal(np.full(3, 4.0), np.full(3, 90.0), np.array([[0.5, 0.5, 0.5], [0.1, 0, 0]]), ("Na", "Cl"))
    experiment = read_experiment(trained)
    assert spelled(crystal, experiment).split("\n")[2] == "Na"
    task = dataclasses.replace(experiment.task, order="sorted")
    assert spelled(crystal, dataclasses.replace(experiment, task=task)).split("\n")[2] == "Cl"


def test_isotopes_and_ions_are_elements():
    cif = "data_x\n_cell_length_a 4\n_cell_length_b 4\n_cell_length_c 4\n_cell_angle_alpha 90\n_cell_angle_beta 90\n"
    cif += "_cell_angle_gamma 90\nloop_\n_atom_site_label\n_atom_site_fract_x\n_atom_site_fract_y\n_atom_site_fract_z\n"
    assert set(crystal_of(Entry("", cif + "D1 0 0 0\nLi1+ 0.5 0.5 0.5\n")).symbols) == {"H", "Li"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "either --element=Fe or --site=0"),
        ({"element": "Mg", "site": 0}, "either --element=Fe or --site=0"),
        ({"element": "Fe"}, "the crystal has no 'Fe'; it has Mg, O"),
        ({"site": 2}, "has no site 2; sites are 0 to 1"),
        ({"site": -1}, "has no site -1"),
        ({"site": 0, "temperature": 0.0}, "temperature must be positive, not 0.0"),
        ({"site": 0, "top_k": 0}, "top_k=0"),
        (
            {"site": 0, "constraints": ["radius"], "radius_tolerance": 0.0},
            "no element has an ionic radius within 0.0 Å of Mg",
        ),
        ({"site": 0, "cif": "{tmp}/none.cif"}, "none.cif: no such file or folder of crystals"),
        ({"site": 0, "cif": "{tmp}/bad.cif"}, "bad.cif: CIF does not parse"),
        ({"site": 0, "cif": "{tmp}/two.cif"}, "two.cif holds 2 crystals; give a file of one"),
        ({"site": 0, "checkpoint": "{tmp}/without"}, r"trained without infilling \(task.infill=0\)"),
        ({"site": 0, "checkpoint": "{tmp}"}, "is no training workdir"),
        ({"site": 0, "step": 5}, "no checkpoint of step 5"),
    ],
)
def test_bad_requests_are_one_clear_line_and_write_nothing(trained, magnesia, tmp_path, changes, message):
    (tmp_path / "bad.cif").write_text("nothing")
    (tmp_path / "two.cif").write_text(magnesia.read_text() + magnesia.read_text())
    without = json.loads((trained / "config.json").read_text())
    without["experiment"]["task"]["infill"] = 0.0
    (tmp_path / "without").mkdir()
    (tmp_path / "without/config.json").write_text(json.dumps(without))
    paths = {"checkpoint": trained, "cif": magnesia}
    arguments = {name: changes.get(name, value) for name, value in (paths | changes).items()}
    for name in paths:
        arguments[name] = type(tmp_path)(str(arguments[name]).format(tmp=tmp_path))
    with pytest.raises(UserError, match=message) as caught:
        infill(arguments.pop("checkpoint"), output=tmp_path / "out", **arguments)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
