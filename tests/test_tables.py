import gzip
import os

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystal_jax.errors import UserError
from crystal_jax.tables import Table, parse_rows, read_bytes, read_frame, read_rows, to_csv, to_text, write_rows


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.CSV.GZ"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_reads_a_table(tmp_path, name, mark):
    content = mark + b'id,cif\r\nmp-1,"one,\ntwo"\n\nNaN,\n'
    (tmp_path / name).write_bytes(gzip.compress(content) if name.lower().endswith(".gz") else content)
    table = read_rows(tmp_path / name)
    assert table == Table(("id", "cif"), (("mp-1", "one,\ntwo"), ("NaN", "")))
    assert table.column("id") == ["mp-1", "NaN"]
    assert table.records()[1] == {"id": "NaN", "cif": ""}
    with pytest.raises(KeyError):
        table.column("name")


def test_the_index_of_pandas_is_left_out():
    assert parse_rows(b",id,x\n0,a,1\n1,b,2\n", name="t.csv") == Table(("id", "x"), (("a", "1"), ("b", "2")))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b\n1,2,\n", "row 1 has more cells than the header has columns"),
        (b"a,b\n1,2\n3\n", "row 2 has fewer cells than the header has columns"),
        (b"", "the file is empty"),
        (b"\n\n", "the file is empty"),
        (b"a,,b\n1,2,3\n", "column 2 has no name"),
        (b"a,b,\n1,2,3\n", "column 3 has no name"),
        (b"a,a\n1,2\n", "names the column 'a' twice"),
        (b"a\n\0\n", "NUL bytes"),
        (b"a\n\xff\n", "not UTF-8"),
        ("a\nx\n".encode("utf-16"), "not UTF-8"),
        (b'a\n"x\n', "is no CSV table"),
        (b'a\n"x"y\n', "is no CSV table"),
    ],
)
def test_a_bad_table_is_one_line(content, message):
    with pytest.raises(UserError, match=message) as error:
        parse_rows(content, name="t.csv")
    assert str(error.value).startswith("t.csv")
    assert "\n" not in str(error.value)


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(b"a\n" * 99)[:-9])
    (tmp_path / "false.csv.gz").write_bytes(b"a\n1\n")
    for name, message in [
        ("pipe.csv", "a pipe, a socket or a device"),
        (".", "is a folder"),
        ("absent.csv", "no such file"),
        ("cut.csv.gz", "cannot be read"),
        ("false.csv.gz", "cannot be read"),
        ("nul\0.csv", "cannot be read"),
    ]:
        with pytest.raises(UserError, match=message):
            read_bytes(tmp_path / name)


FRAME = pd.DataFrame(
    {
        "name": pd.Series(["NaN", "null", "=SUM(A1)", "'-x", None], dtype="str"),
        "valid": [True, False, True, True, False],
        "novel": pd.Series([True, None, False, None, None], dtype="boolean"),
        "spacegroup": pd.Series([225, None, 1, 2, 3], dtype="Int64"),
        "density": [2.164, float("nan"), -1.5, float("inf"), 0.1 + 0.2],
    }
)


def test_a_frame_comes_back_as_it_was(tmp_path):
    (tmp_path / "t.csv").write_text(to_csv(FRAME))
    found = read_frame(tmp_path / "t.csv", {name: str(dtype) for name, dtype in FRAME.dtypes.items()})
    pd.testing.assert_frame_equal(found, FRAME, check_exact=True)


def test_a_spreadsheet_runs_no_cell():
    lines = to_csv(FRAME).splitlines()
    assert lines[3] == "'=SUM(A1),True,False,1,-1.5"
    assert lines[4].startswith("''-x,")
    assert to_text(["a", "b"], [["@x", -1.5], ["-1.5", "+y"], ["\tz", 2]]) == "a,b\n'@x,-1.5\n-1.5,'+y\n'\tz,2\n"


_TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
_RUN = st.from_regex(r"'{0,2}[=+\-@][\w\s]*", fullmatch=True)


@settings(max_examples=200, deadline=None)
@given(st.lists(_TEXT | _RUN, min_size=1, max_size=4))
def test_any_text_survives(cells):
    columns = [f"c{i}" for i in range(len(cells))] + ["last"]
    table = parse_rows(to_text(columns, [[*cells, "x"]]).encode(), name="t")
    assert table.rows == ((*cells, "x"),)


def test_rows_are_written_whole(tmp_path):
    write_rows(tmp_path / "new" / "t.csv", ["a"], [["=x"], [""]])
    assert (tmp_path / "new" / "t.csv").read_text() == 'a\n\'=x\n""\n'
    assert read_rows(tmp_path / "new" / "t.csv").column("a") == ["=x", ""]


@pytest.mark.parametrize(
    ("dtype", "cell"),
    [("bool", ""), ("bool", "maybe"), ("boolean", "1"), ("Int64", "1.5"), ("float64", "wide")],
)
def test_a_cell_of_another_type_is_named(tmp_path, dtype, cell):
    (tmp_path / "t.csv").write_text(f"name,x\na,{cell}\n")
    with pytest.raises(UserError, match=rf"t\.csv: x, row 1: '{cell}' is not of the type {dtype}"):
        read_frame(tmp_path / "t.csv", {"x": dtype})


def test_an_absent_column_is_named(tmp_path):
    (tmp_path / "t.csv").write_text("name\na\n")
    with pytest.raises(UserError, match="has no column 'x'; the columns are: name"):
        read_frame(tmp_path / "t.csv", {"x": "str"})
