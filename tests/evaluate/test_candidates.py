import pandas as pd

from crystal_jax.evaluate.candidates import COLUMNS, candidates, write_cifs
from crystal_jax.evaluate.structures import COLUMNS as ALL


def table(**columns):
    rows = pd.DataFrame(columns)
    return rows.reindex(columns=list(ALL)).astype(ALL | {"valid": "boolean"})


def test_the_lowest_valid_unique_and_new_ones_come_first():
    rows = table(
        name=["no", "known", "twice", "high", "low", "unmeasured"],
        valid=[False, True, True, True, True, True],
        unique=[None, True, False, True, True, True],
        novel=[None, False, True, True, True, True],
        e_above_hull=[-1.0, -1.0, -1.0, 0.3, 0.01, None],
    )
    found = candidates(rows.assign(valid=rows["valid"].astype(bool)))
    assert found["name"].tolist() == ["low", "high", "unmeasured"]
    assert found["rank"].tolist() == [1, 2, 3]
    assert tuple(found.columns) == COLUMNS


def test_without_a_training_set_all_unique_ones_are_candidates():
    rows = table(name=["a", "b"], valid=[True, True], unique=[True, True])
    assert candidates(rows.assign(valid=True))["name"].tolist() == ["a", "b"]


def test_each_candidate_has_a_file_and_earlier_ones_are_gone(tmp_path):
    rows = table(name=["a", "b"], valid=[True, True], unique=[True, True], reduced_formula=["NaCl", "K2O"])
    rows["e_above_hull"] = [0.2, 0.1]
    (tmp_path / "00009_old.cif").write_text("")
    write_cifs(candidates(rows.assign(valid=True)), {"a": "salt", "b": "oxide"}, tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "00001_K2O.cif": "oxide",
        "00002_NaCl.cif": "salt",
    }
