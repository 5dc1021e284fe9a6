import gzip
import re
from pathlib import Path

import pytest
from pymatgen.core import Composition

from crystal_jax.errors import UserError
from crystal_jax.structures import Entry, parse, read_entries, read_reference
from crystal_jax.structures.parse import died


@pytest.fixture
def cif(salt):
    return salt.to(fmt="cif")


def with_field(cif: str, field: str, value: str) -> str:
    changed = re.sub(rf"^{field}\s.*$", f"{field} {value}", cif, flags=re.MULTILINE)
    assert changed != cif
    return changed


def test_reads_a_sound_crystal(cif):
    sample = parse(Entry("salt", cif))
    assert (sample.name, sample.cif, sample.failure) == ("salt", cif, None)
    assert sample.structure.formula == "Na4 Cl4"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda cif: "", "no CIF: "),
        (lambda cif: "  \n", "no CIF: "),
        (lambda cif: "NaCl", "CIF does not parse: "),
        (lambda cif: cif[: len(cif) // 3], "CIF does not parse: "),
        (lambda cif: cif.replace("  Na  ", "  Ln  "), "CIF does not parse: |a site holds no real element"),
        (lambda cif: with_field(cif, "_cell_length_a", "nan"), "the lattice forms no cell"),
        (lambda cif: with_field(cif, "_cell_length_b", "inf"), "the lattice forms no cell"),
        (lambda cif: with_field(cif, "_cell_length_c", "1e300"), "the lattice forms no cell"),
        (lambda cif: with_field(cif, "_cell_angle_alpha", "0"), "the lattice forms no cell"),
        (lambda cif: cif.replace("  1\n", "  0.5\n"), "disordered: "),
    ],
)
def test_a_damaged_cif_is_a_failure_and_not_a_crash(cif, damage, reason):
    sample = parse(Entry("bad", damage(cif)))
    assert sample.structure is None
    assert re.match(reason, sample.failure)
    assert "\n" not in sample.failure


@pytest.mark.parametrize("column", ["cif", "cif_str"])
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_reads_csv(tmp_path, column, suffix):
    text = f'model_name,{column}\nllama,"line one\nline two"\nllama,\n'
    path = tmp_path / f"samples{suffix}"
    path.write_bytes(gzip.compress(text.encode()) if suffix == ".csv.gz" else text.encode())
    assert read_entries(path) == [
        Entry("000000", "line one\nline two", "llama"),
        Entry("000001", "", "llama"),
    ]


def test_takes_names_that_are_unique(tmp_path):
    (tmp_path / "a.csv").write_text("material_id,cif\nmp-1,x\nmp-2,y\n")
    (tmp_path / "b.csv").write_text("material_id,cif\nmp-1,x\nmp-1,y\n")
    assert [entry.name for entry in read_entries(tmp_path / "a.csv")] == ["mp-1", "mp-2"]
    assert [entry.name for entry in read_entries(tmp_path / "b.csv")] == ["000000", "000001"]


def test_reads_a_folder_in_order(tmp_path, cif):
    for name in ("b", "a"):
        (tmp_path / f"{name}.cif").write_text(cif)
    (tmp_path / "notes.txt").write_text("not a crystal")
    assert [entry.name for entry in read_entries(tmp_path)] == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.csv", None, "no such file or folder"),
        ("empty.csv", b"", "the file is empty"),
        ("header.csv", b"gen_str,cif\n", "a header but no rows"),
        ("other.csv", b"a,b\n1,2\n", r"no column 'cif' \(or 'cif_str'\); the columns are: a, b"),
        ("binary.csv", b"\xff\xfe\x00cif", "is no CSV table: it is not UTF-8"),
        ("ragged.csv", b"cif\na\nb,c,d\n", "row 2 has more cells than the header has columns"),
        ("false.csv.gz", b"cif\nx\n", "cannot be read"),
        ("cut.csv.gz", gzip.compress(b"cif\n" + b"x\n" * 99, mtime=0)[:-12], "cannot be read"),
        ("samples.txt", b"cif\nx\n", "are read from a .csv"),
    ],
)
def test_bad_files_are_one_line_errors(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_entries(tmp_path / name)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_without_cifs(tmp_path):
    with pytest.raises(UserError, match=r"holds no crystal files \(\*\.cif, "):
        read_entries(tmp_path)


def test_a_missing_reference(tmp_path):
    with pytest.raises(UserError, match="no such reference"):
        read_reference(str(tmp_path / "nowhere:train"), default_split="test")


def test_formula_of_a_header(cif):
    assert Entry("a", cif).stated_composition() == Composition("Na4 Cl4")
    assert Entry("a", cif, formula="K2Cl2").stated_composition() == Composition("K2 Cl2")


@pytest.mark.parametrize("stated", ["", "'what ?'", "'Na0.5 Cl1'", "'Xx1 Cl1'"])
def test_what_is_no_composition_is_not_stated(stated):
    assert Entry("a", f"data_x\n_chemical_formula_sum {stated}\n").stated_composition() is None


def test_a_column_numbers_requests(tmp_path):
    (tmp_path / "a.csv").write_text("cif,request_number\nx,0\ny, 12 \nz,\n")
    assert [entry.request for entry in read_entries(tmp_path / "a.csv")] == [0, 12, None]
    for cell in ("one", "-1", "1.5", "9" * 5000):
        (tmp_path / "a.csv").write_text(f"cif,request_number\nx,{cell}\n")
        with pytest.raises(UserError, match=rf"a\.csv, row 1: request_number is '{cell[:20]}"):
            read_entries(tmp_path / "a.csv")


def test_names_that_pandas_takes_for_missing_stay(tmp_path):
    names = ["NaN", "NA", "null", "None", "nan", "1e5", "-0"]
    (tmp_path / "a.csv").write_text("name,cif\n" + "".join(f"{name},x\n" for name in names))
    assert [entry.name for entry in read_entries(tmp_path / "a.csv")] == names


def test_a_trailing_comma_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("name,cif\na,x,\nb,y,\n")
    with pytest.raises(UserError, match=r"a\.csv: row 1 has more cells than the header has columns"):
        read_entries(tmp_path / "a.csv")


def test_a_cif_file_of_one_and_of_several_crystals(tmp_path, cif):
    (tmp_path / "one.cif").write_text(cif)
    assert read_entries(tmp_path / "one.cif") == [Entry("one", cif)]
    second = cif.replace("data_NaCl", "data_other")
    (tmp_path / "more.CIF").write_text(cif + second + cif)
    entries = read_entries(tmp_path / "more.CIF")
    assert [entry.name for entry in entries] == ["more_NaCl", "more_other", "more_NaCl_2"]
    assert all(parse(entry).failure is None for entry in entries)


def test_a_reference_may_be_any_source_or_a_data_set(tmp_path, cif, dataset):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.CIF").write_text(cif)
    assert [entry.name for entry in read_reference(str(tmp_path), default_split="test")] == ["sub_a"]
    assert [entry.name for entry in read_reference(str(tmp_path / "sub/a.CIF"), default_split="test")] == ["a"]
    train = read_reference(f"{dataset}:train", default_split="test")
    assert train != read_reference(str(dataset), default_split="test")
    assert all(parse(entry).failure is None for entry in train)


def test_an_entry_without_cif_says_why(tmp_path):
    assert parse(Entry("a", "", fault="it has no atoms")).failure == "it has no atoms"
    assert died(Entry("a", "x", formula="NaCl")).composition == Composition("NaCl")


@pytest.mark.parametrize("name", ["x" * 5000 + ".cif", "x\0.cif"])
def test_a_name_that_no_file_has_is_refused(name):
    with pytest.raises(UserError):
        read_entries(Path(name))
    with pytest.raises(UserError):
        read_reference(name, default_split="test")
