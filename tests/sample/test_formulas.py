"""Formulas that a model states before a crystal."""

import csv
import json
from collections import Counter

import jax
import pytest
from pymatgen.core import Composition

from crystal_jax.checkpoint.models import load_trained
from crystal_jax.config import MeshConfig
from crystal_jax.errors import UserError
from crystal_jax.evaluate.oxidation import load_oxidation_table
from crystal_jax.evaluate.validity import compositional_fault
from crystal_jax.sample.formulas import Formulas
from crystal_jax.sample.run import sample
from crystal_jax.sharding import make_mesh
from crystal_jax.text.crystal_text import ELEMENTS
from crystal_jax.text.tokenizer import load_tokenizer
from crystal_jax.train.run import train
from tests.experiments import training_config


@pytest.fixture(scope="module")
def stating(dataset, tmp_path_factory):
    """A model that has read prompts long enough to state what looks like a formula now and then."""
    workdir = tmp_path_factory.mktemp("stating") / "run"
    config = training_config(
        str(dataset),
        task={"loss": "all", "infill": 0.0},
        optimizer={"peak_lr": 2e-2},
        train={"num_steps": 20, "eval_every": 20, "save_every": 20},
    )
    train(config, workdir=workdir)
    return workdir


def make(workdir, *, elements=ELEMENTS, admit=lambda unit: True, at_once=16):
    mesh = make_mesh(MeshConfig(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    trained = load_trained(workdir, mesh)
    tokenizer = load_tokenizer("atom_coordinate")
    return Formulas(trained, tokenizer, mesh, elements=elements, admit=admit, seed=1, at_once=at_once)


def test_a_formula_depends_on_its_number_alone(stating):
    many = dict(make(stating)(range(20), temperature=1.0, top_p=1.0))
    some = dict(make(stating, at_once=4)([3, 17], temperature=1.0, top_p=1.0))
    assert list(many) == list(range(20))
    assert some == {index: many[index] for index in (3, 17)}
    assert len(set(many.values())) > 2


def test_formulas_keep_to_elements_and_admission(stating):
    drawn = make(stating, elements=("Na", "K", "Cl"), admit=lambda unit: len(unit) == 2)
    for _, formula in drawn(range(12), temperature=1.0, top_p=1.0):
        symbols = Composition(formula).get_el_amt_dict()
        assert len(symbols) == 2
        assert set(symbols) <= {"Na", "K", "Cl"}


def test_the_model_learns_which_formulas_there_are(stating):
    """The data are rock salts: metal and anion one to one."""
    formulas = [f for _, f in make(stating)(range(40), temperature=0.5, top_p=1.0)]
    assert Counter(len(Composition(f)) for f in formulas).most_common(1)[0][0] == 2


def test_what_is_never_admitted_is_said(stating):
    with pytest.raises(UserError, match="none of 1000 formulas"):
        list(make(stating, admit=lambda unit: False)([0], temperature=1.0, top_p=1.0))


def test_a_model_that_was_not_trained_on_prompts_cannot(trained, tmp_path):
    with pytest.raises(UserError, match="has not learned to state formulas"):
        sample(trained, output=tmp_path / "out", num_samples=1, draw_formula=True)
    with pytest.raises(UserError, match="either asked for or drawn"):
        sample(trained, output=tmp_path / "out", conditions={"pretty_formula": "NaCl"}, draw_formula=True)
    assert not (tmp_path / "out").exists()


def test_crystals_of_drawn_formulas(stating, tmp_path):
    """Kept to by a constraint, with charges that balance, in a space group that is asked for."""
    options = dict(
        draw_formula=True,
        conditions={"spacegroup.number": 225},
        constraints=["formula", "charge"],
        without=["H"],
        min_atoms=3,
        max_atoms=8,
    )
    path = sample(stating, output=tmp_path / "out", num_samples=12, batch_size=8, **options)
    rows = [json.loads(line) for line in (path.parent / "samples.jsonl").open()]
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(rows) == len(lines) == 12
    for row, line in zip(rows, lines, strict=True):
        formula = row["request"]["pretty_formula"]
        assert f"The chemical formula is {formula}. The spacegroup number is 225. Generate" in row["prompt"]
        assert Composition(line["formula"]).reduced_formula == Composition(formula).reduced_formula
        assert compositional_fault(Composition(line["formula"]), load_oxidation_table()) is None
    sample(stating, output=tmp_path / "again", num_samples=5, batch_size=4, **options)
    sample(stating, output=tmp_path / "again", num_samples=12, batch_size=4, **options)
    again = [json.loads(line)["text"] for line in (tmp_path / "again/samples.jsonl").open()]
    assert again == [row["text"] for row in rows]
