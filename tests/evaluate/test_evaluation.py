"""The files of an evaluation belong together, or are refused."""

import json

import pandas as pd
import pytest

from crystal_jax.errors import UserError
from crystal_jax.evaluate.candidates import CandidateCifs
from crystal_jax.evaluate.columns import COLUMNS
from crystal_jax.evaluate.evaluation import Evaluation, read_evaluation, write_evaluation


@pytest.fixture
def rows():
    row = {
        "name": "NaN",
        "formula": "Na1 N1",
        "reduced_formula": "NaN",
        "valid": True,
        "unique": True,
        "failure_reason": "",
    }
    frame = pd.DataFrame([row, row | {"name": "=cmd()"}]).reindex(columns=list(COLUMNS))
    for name, kind in COLUMNS.items():
        if kind == "bool":
            frame[name] = [cell is True for cell in frame[name]]
    return frame.astype(COLUMNS)


def test_what_is_written_is_read_back(rows, tmp_path):
    write_evaluation(
        tmp_path,
        Evaluation({"validity": 1}, rows),
        {"NaN": CandidateCifs("a", None), "=cmd()": CandidateCifs("b", None)},
    )
    found = read_evaluation(tmp_path)
    assert found.table["name"].tolist() == ["NaN", "=cmd()"]
    assert found.metrics["validity"] == 1
    assert found.table.dtypes.astype(str).to_dict() == rows.dtypes.astype(str).to_dict()
    cells = (tmp_path / "structures.csv").read_text()
    assert "'=cmd()" in cells  # a spreadsheet shows it, and does not run it
    assert sorted(path.name for path in (tmp_path / "candidates").glob("*.cif")) == ["00001_NaN.cif", "00002_NaN.cif"]


def test_tables_of_another_run_are_refused(rows, tmp_path):
    """An evaluation that failed halfway left a new table beside old metrics."""
    write_evaluation(tmp_path, Evaluation({}, rows))
    old = (tmp_path / "metrics.json").read_bytes()
    write_evaluation(tmp_path, Evaluation({}, rows.head(1)))
    (tmp_path / "metrics.json").write_bytes(old)
    with pytest.raises(UserError, match=r"structures\.csv is not of the same run as metrics\.json"):
        read_evaluation(tmp_path)


def test_an_older_evaluation_lacks_columns(rows, tmp_path):
    rows.drop(columns=["plausible", "relaxed_density"]).to_csv(tmp_path / "structures.csv", index=False)
    (tmp_path / "metrics.json").write_text(json.dumps({"validity": 1}))
    found = read_evaluation(tmp_path).table
    assert found["plausible"].tolist() == [False, False]
    assert found["relaxed_density"].isna().all()


@pytest.mark.parametrize("content", ["{", "[1]", "\0", ""])
def test_damaged_metrics_are_one_line(rows, tmp_path, content):
    write_evaluation(tmp_path, Evaluation({}, rows))
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(UserError, match=r"metrics\.json") as error:
        read_evaluation(tmp_path)
    assert "\n" not in str(error.value)
