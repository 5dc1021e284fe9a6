import gzip
import struct

import pytest
from pymatgen.core import Structure

from crystal_jax.errors import UserError
from tfds_mp20.names import SKIP
from tfds_mp20.user_files import UserFiles

ELEMENTS = ("Po", "Na", "Cu", "Fe", "Al", "W")


def write_table(path, cifs):
    rows = "".join(f'"{text}"\n' for text in cifs)
    path.write_text(f"cif\n{rows}")


def formulas(files: UserFiles) -> set[str]:
    return {example["formula"] for part in files.splits(None).values() for example in part}


def test_a_table_is_split(cif, tmp_path):
    write_table(tmp_path / "my.csv", [cif(element) for element in ELEMENTS])
    parts = UserFiles(path=tmp_path / "my.csv").splits(None)
    assert {name: len(list(part)) for name, part in parts.items()} == {"train": 4, "val": 1, "test": 1}


def test_a_folder_of_cif_files_is_the_same_crystals(cif, tmp_path):
    for element in ELEMENTS:
        (tmp_path / f"{element}.cif").write_text(cif(element))
    files = UserFiles(path=tmp_path)
    assert formulas(files) == set(ELEMENTS)
    assert {example["material_id"] for part in files.splits(None).values() for example in part} == set(ELEMENTS)


def test_a_folder_of_tables_keeps_its_splits(cif, tmp_path):
    write_table(tmp_path / "train.csv", [cif("Na"), cif("Cu")])
    write_table(tmp_path / "val.csv", [cif("Na")])
    (tmp_path / "test.csv.gz").write_bytes(gzip.compress(f'cif\n"{cif("W")}"\n'.encode()))
    parts = UserFiles(path=tmp_path).splits(None)
    found = {name: [example["formula"] for example in part] for name, part in parts.items()}
    assert found == {"train": ["Na", "Cu"], "val": ["Na"], "test": ["W"]}


def test_a_folder_with_one_of_the_tables_asks_for_the_others(cif, tmp_path):
    write_table(tmp_path / "train.csv", [cif("Na")])
    with pytest.raises(UserError, match=r"no val\.csv"):
        UserFiles(path=tmp_path).splits(None)


def test_a_path_without_crystals_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no crystal files"):
        UserFiles(path=tmp_path).digest()
    with pytest.raises(UserError, match=r"there is no .*nowhere"):
        UserFiles(path=tmp_path / "nowhere").digest()


def test_bad_crystals_fail_all_at_once_or_are_skipped(cif, tmp_path, caplog):
    without = cif("Fe").replace("_cell_length_b", "_cell_width_b")
    write_table(tmp_path / "my.csv", [cif("Na"), "no crystal", without, *(cif(element) for element in ELEMENTS)])
    with pytest.raises(UserError) as error:
        UserFiles(path=tmp_path / "my.csv").splits(None)
    assert str(error.value) == (
        "2 of 9 crystals cannot be used: my.csv, row 2: CIF does not parse: it has no 'data_' line; my.csv, row 3: CIF "
        "does not parse: it has no _cell_length_b; mend or remove them (or pass --on_error=skip)"
    )
    assert formulas(UserFiles(path=tmp_path / "my.csv", on_error=SKIP)) == set(ELEMENTS)
    assert "my.csv, row 2" in caplog.text
    assert "my.csv, row 3" in caplog.text
    assert "skipped 2 of 9" in caplog.text


def test_a_message_names_no_more_than_can_be_read(cif, tmp_path):
    write_table(tmp_path / "my.csv", ["no crystal"] * 60)
    with pytest.raises(UserError, match=r"60 of 60 .*row 50: [^;]*; and 10 more; mend"):
        UserFiles(path=tmp_path / "my.csv").splits(None)


def test_other_sources_are_read_too(cif, tmp_path, capsys):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for element in ELEMENTS[:3]:
        (tmp_path / "in" / "sub" / f"{element}.CIF").write_text(cif(element))
    (tmp_path / "in" / "all.cif").write_text("".join(cif(element) for element in ELEMENTS[3:]))
    (tmp_path / "in" / "notes.txt").write_text("of the crystals")
    files = UserFiles(path=tmp_path / "in")
    parts = files.splits(None)
    ids = {example["material_id"] for part in parts.values() for example in part}
    assert ids == {"sub_Po", "sub_Na", "sub_Cu", "all_Fe", "all_Al", "all_W"}
    assert "1 file is no crystals: notes.txt" in capsys.readouterr().err
    files.digest()
    assert "notes.txt" not in capsys.readouterr().err


def test_the_only_table_of_a_folder_keeps_its_columns(cif, tmp_path):
    rows = "".join(f'"{cif(element)}",0.5\n' for element in ELEMENTS)
    (tmp_path / "crystals.csv").write_text(f"cif,band_gap\n{rows}")
    parts = UserFiles(path=tmp_path).splits(None)
    assert {example["band_gap"] for part in parts.values() for example in part} == {struct.pack("<d", 0.5)}


def test_a_stated_formula_is_compared(cif, tmp_path):
    rows = "".join(f'"{cif(element)}",{element if element != "Fe" else "FeO"}\n' for element in ELEMENTS)
    (tmp_path / "my.csv").write_text(f"cif,formula\n{rows}")
    with pytest.raises(UserError, match=r"1 of 6 .* row 4: Fe1 in the cell, FeO stated"):
        UserFiles(path=tmp_path / "my.csv").splits(None)


def test_cells_are_reduced_unless_they_are_to_stay(cif, tmp_path):
    write_table(tmp_path / "my.csv", [Structure.from_str(cif(e), fmt="cif").__mul__(2).to(fmt="cif") for e in ELEMENTS])
    reduced, given = UserFiles(path=tmp_path / "my.csv"), UserFiles(path=tmp_path / "my.csv", primitive=False)
    assert reduced.digest() != given.digest()
    for files, atoms in ((reduced, 1), (given, 8)):
        examples = [example for part in files.splits(None).values() for example in part]
        assert {len(example["atomic_numbers"]) for example in examples} == {atoms}


def test_the_digest_follows_content_and_name(cif, tmp_path):
    path = tmp_path / "my.csv"
    write_table(path, [cif("Na")])
    first = UserFiles(path=path).digest()
    assert UserFiles(path=path).digest() == first
    assert UserFiles(path=path.rename(tmp_path / "other.csv")).digest() != first
    write_table(path, [cif("Na", a=4.1)])
    assert UserFiles(path=path).digest() != first


def test_a_subset_is_seeded(cif, tmp_path):
    write_table(tmp_path / "my.csv", [cif(element) for element in ELEMENTS])
    subsets = [formulas(UserFiles(path=tmp_path / "my.csv", max_entries=4, seed=seed)) for seed in (0, 0, 1, 2, 3)]
    assert all(len(subset) == 4 for subset in subsets)
    assert subsets[0] == subsets[1]
    assert len({frozenset(subset) for subset in subsets}) > 1
