"""Stages are pure: they see what they declare, give what they declare, and their order has no influence."""

import json
import random

import numpy as np
import pandas as pd
import pytest
from pymatgen.core import Lattice, Structure

from crystal_jax.errors import UserError
from crystal_jax.evaluate.columns import TYPES
from crystal_jax.evaluate.config import EvaluateConfig
from crystal_jax.evaluate.inputs import Inputs
from crystal_jax.evaluate.results import content_of
from crystal_jax.evaluate.run import evaluate
from crystal_jax.evaluate.stages import STAGES, Stage, run_stages


@pytest.fixture
def structures(salt, cesium_chloride):
    squeezed = salt.copy()
    squeezed.scale_lattice(0.2)
    return [salt, salt, cesium_chloride, squeezed]


@pytest.fixture
def inputs(structures, salt):
    config = EvaluateConfig(
        samples=structures, reference=structures[1:3], train_reference=[salt], fingerprints="all", progress=False
    )
    return Inputs.read(config)


def numbers(table, inputs):
    content = content_of(table, inputs, command=None)
    return json.dumps({name: value for name, value in content.items() if name not in ("date", "seconds")})


def test_the_order_of_stages_has_no_influence(inputs):
    """The first stage in the list whose needs are known runs next: every possible order can occur."""
    expected = run_stages(inputs)
    for seed in range(5):
        shuffled = random.Random(seed).sample(STAGES, len(STAGES))
        found = run_stages(inputs, shuffled)
        pd.testing.assert_frame_equal(found, expected)
        assert numbers(found, inputs) == numbers(expected, inputs)


def test_every_column_is_given_by_one_stage():
    given = [name for stage in STAGES for name in stage.gives]
    assert len(given) == len(set(given))
    assert set(given) == set(TYPES)
    assert {name for stage in STAGES for name in stage.needs} <= set(given)


def test_a_stage_sees_what_it_declares(inputs):
    seen = []

    def spy(table, _):
        seen.extend(table.columns)
        return {"perplexity": pd.Series({1: 2.0})}

    first = STAGES[0]
    table = run_stages(inputs, [Stage(spy, gives=("perplexity",), needs=("name",)), first])
    assert seen == ["name"]
    assert table["perplexity"].fillna(-1).tolist() == [-1, 2, -1, -1]
    assert table["unique"].isna().all()  # no stage gave it


@pytest.mark.parametrize(
    ("some", "message"),
    [
        ([Stage(lambda t, i: {}, gives=("ipt",)), Stage(lambda t, i: {}, gives=("ipt",))], "two stages give a column"),
        ([Stage(lambda t, i: {}, gives=("ipt",), needs=("valid",))], "wait for columns that none gives"),
        ([Stage(lambda t, i: {"valid": t.get("x")}, gives=("ipt",))], "columns that it does not declare: {'valid'}"),
    ],
)
def test_wrong_declarations_are_errors(inputs, some, message):
    with pytest.raises(ValueError, match=message):
        run_stages(inputs, some)


def test_structures_in_memory_give_the_same_as_a_file(structures, tmp_path):
    pd.DataFrame({"cif": [s.to(fmt="cif") for s in structures]}).to_csv(tmp_path / "s.csv", index=False)
    of_file = evaluate(tmp_path / "s.csv", reference=tmp_path / "s.csv", progress=False)
    of_memory = evaluate(structures, reference=structures, progress=False)
    for name in ("validity", "uniqueness", "coverage_recall", "wasserstein_density", "failures"):
        assert of_memory.metrics[name] == of_file.metrics[name]
    assert of_memory.metrics["samples"]["path"] is None
    assert of_memory.table["unique"].tolist()[:3] == [True, False, True]
    assert of_memory.candidates["reduced_formula"].tolist() == ["NaCl", "CsCl"]
    assert "validity                   75.00 %   3 of 4" in str(of_memory)
    assert [path.name for path in tmp_path.iterdir()] == ["s.csv"]  # without output, nothing is written


def test_charged_and_disordered_structures_in_memory(salt):
    charged = salt.copy()
    charged.add_oxidation_state_by_element({"Na": 1, "Cl": -1})
    disordered = Structure(Lattice.cubic(4), [{"Na": 0.5, "K": 0.5}, "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    table = evaluate([charged, disordered], progress=False).table
    assert table["valid"].tolist() == [True, False]
    assert "disordered" in table["failure_reason"][1]


def test_settings_are_checked_before_anything_is_read():
    with pytest.raises(UserError, match=r"samples\[1\] is str"):
        evaluate([Structure(Lattice.cubic(4), ["Na"], np.zeros((1, 3))), "a.cif"], progress=False)
    with pytest.raises(TypeError, match="colour"):
        evaluate("samples.csv", colour="red")
