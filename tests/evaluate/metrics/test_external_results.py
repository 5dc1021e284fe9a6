import json

import pandas as pd
import pytest

from crystal_jax.errors import UserError
from crystal_jax.evaluate.metrics.external_results import (
    infill_metrics,
    read_infilled,
    read_scores,
    score_columns,
    score_metrics,
)


def rows(**columns):
    table = pd.DataFrame(columns)
    return table.assign(perplexity=float("nan"), ipt=float("nan"))


def line(index, perplexity, ipt, translations=3):
    return {
        "index": index,
        "name": str(index),
        "reason": None,
        "perplexity": perplexity,
        "ipt": ipt,
        "translations": [{}] * translations,
    }


def write(path, lines):
    path.write_text("".join(json.dumps(x) + "\n" for x in lines))
    return path


def scored(path, table):
    """Returns the metrics, and the table with the columns that they are made of."""
    scores = read_scores(path, num_samples=len(table))
    table = table.assign(**score_columns(scores))
    return score_metrics(table, scores), table


def infilled(folders, table):
    return infill_metrics([read_infilled(folder) for folder in folders], table)


def test_scores(tmp_path):
    table = rows(name=["a", "b", "c"])
    unscored = {"index": 1, "name": "b", "reason": "no cell"}
    found, table = scored(write(tmp_path / "s.jsonl", [line(0, 2.0, 0.1), unscored, line(2, 4.0, 0.3)]), table)
    assert found["perplexity"] == {"value": 3.0, "scored": 2, "total": 3}
    assert found["ipt"] == {"value": pytest.approx(0.2), "scored": 2, "total": 3, "translations": 3}
    assert table["perplexity"].fillna(-1).tolist() == [2, -1, 4]


def test_scores_without_translations(tmp_path):
    found, _ = scored(write(tmp_path / "s.jsonl", [line(0, 2.0, None, 0)]), rows(name=["a"]))
    assert found["ipt"] == {"value": None, "scored": 0, "total": 1, "translations": 0}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([line(3, 1.0, 0.0)], "has a score of crystal 3, but there are 1 samples"),
        ([{"a": 1}], "line 1: index is missing; score the samples again"),
        ([{"index": "0"}], "line 1: index is '0', not a whole number"),
        ([{"index": -1, "reason": "x"}], "line 1: index is -1"),
        ([line(0, "low", 0.1)], "line 1: perplexity is 'low', not a finite number"),
        ([line(0, 2.0, 0.1) | {"translations": 3}], "line 1: translations is 3, not a list"),
        ([[0]], "line 1: it is a list, not an object"),
        (None, "give scores.jsonl of 'crystal-jax score'"),
    ],
)
def test_bad_scores(tmp_path, lines, message):
    path = tmp_path / "s.jsonl"
    if lines is not None:
        write(path, lines)
    with pytest.raises(UserError, match=message):
        read_scores(path, num_samples=1)


def infill(folder, original, table, files):
    (folder / "cif").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"request": {"element": original}}))
    pd.DataFrame(table, columns=["symbol", "probability", "baseline"]).to_csv(folder / "elements.csv", index=False)
    for name in files:
        (folder / "cif" / f"{name}.cif").write_text("")
    return folder


def test_infilling(tmp_path):
    first = infill(
        tmp_path / "1",
        "Fe",
        [("Fe", 0.6, 0.0), ("Co", 0.3, 0.5), ("Na", 0.1, 0.5)],
        ["002_Co_CoO", "003_Na_NaO"],
    )
    second = infill(tmp_path / "2", "O", [("S", 0.7, 1.0), ("O", 0.3, 0.0)], [])
    table = rows(name=["002_Co_CoO", "003_Na_NaO"], valid=[True, False], e_above_hull=[0.05, float("nan")])
    found = infilled([first, second], table)
    assert found["infill_accuracy"] == {"value": 0.5, "hits": 1, "total": 2}
    assert found["infill_probability"] == {"value": pytest.approx(0.45), "masked": 2}
    expected = {"model": pytest.approx(0.75), "uniform_swap": pytest.approx(0.5), "proposals": 2}
    assert found["infill_valid"].items() >= expected.items()
    assert found["infill_valid"]["of_probability"] == pytest.approx([0.2, 0.5])
    assert found["infill_metastable"].items() >= expected.items()


def test_infilling_without_samples_of_it(tmp_path):
    folder = infill(tmp_path / "1", "Fe", [("Fe", 0.6, 0.0)], ["002_Co_CoO"])
    assert set(infilled([folder], rows(name=["other"]))) == {"infill_accuracy", "infill_probability"}
    with pytest.raises(UserError, match=r"has no elements\.csv; give a folder that 'crystal-jax infill' wrote"):
        infilled([tmp_path], rows(name=["other"]))
