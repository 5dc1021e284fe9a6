import gzip

import pytest

from crystal_jax.errors import UserError
from tfds_mp20.user_files import SKIP, UserFiles

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
    with pytest.raises(UserError, match=r"neither train/val/test\.csv nor any \*\.cif"):
        UserFiles(path=tmp_path).digest()
    with pytest.raises(UserError, match=r"there is no .*nowhere"):
        UserFiles(path=tmp_path / "nowhere").digest()


def test_a_bad_crystal_fails_or_is_skipped(cif, tmp_path, caplog):
    write_table(tmp_path / "my.csv", [cif("Na"), "no crystal", *(cif(element) for element in ELEMENTS)])
    with pytest.raises(UserError, match=r"my\.csv, row 2: the CIF does not parse.*--on_error=skip"):
        UserFiles(path=tmp_path / "my.csv").splits(None)
    assert formulas(UserFiles(path=tmp_path / "my.csv", on_error=SKIP)) == set(ELEMENTS)
    assert "my.csv, row 2" in caplog.text
    assert "skipped 1 of 8" in caplog.text


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
