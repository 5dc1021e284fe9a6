import pandas as pd

from crystal_jax.evaluate.candidates import COLUMNS, candidates
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
