import csv
import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from crystal_jax import cli
from crystal_jax.data import mp20
from crystal_jax.data.prepare import prepare
from crystal_jax.errors import UserError
from tfds_mp20 import crystals
from tfds_mp20.mp20_dataset_builder import Builder


@pytest.fixture
def table(cif, tmp_path):
    path = tmp_path / "my.csv"
    path.write_text("cif\n" + "".join(f'"{cif(element)}"\n' for element in ("Po", "Na", "Cu", "Fe")))
    return path


def test_the_second_time_nothing_is_parsed(table, tmp_path, monkeypatch):
    first = prepare("csv", data_dir=tmp_path / "data", manual_dir=table)
    monkeypatch.setattr(crystals, "parse_cif", lambda text: pytest.fail("parsed again"))
    assert prepare("csv", data_dir=tmp_path / "data", manual_dir=table) == first


def test_two_inputs_do_not_collide(table, cif, tmp_path):
    first = prepare("csv", data_dir=tmp_path / "data", manual_dir=table)
    table.write_text(table.read_text().replace(cif("Po"), cif("W")))
    second = prepare("csv", data_dir=tmp_path / "data", manual_dir=table)
    subset = prepare("csv", data_dir=tmp_path / "data", manual_dir=table, max_entries=3)
    other_subset = prepare("csv", data_dir=tmp_path / "data", manual_dir=table, max_entries=3, seed=1)
    assert len({first, second, subset, other_subset}) == 4
    assert sum(mp20.dataset_info(subset).rows.values()) == 3


def test_a_failed_build_leaves_nothing_that_looks_finished(table, tmp_path):
    table.write_text(table.read_text().replace("_cell_length_a", "_cell_width_a"))
    for _ in range(2):
        with pytest.raises(UserError, match=r"my\.csv, row 1"):
            prepare("csv", data_dir=tmp_path / "data", manual_dir=table)
    assert not list((tmp_path / "data").rglob("dataset_info.json"))
    assert not list((tmp_path / "data").rglob("csv_*"))


def test_the_command_names_what_it_skips(table, tmp_path, caplog):
    table.write_text(table.read_text().replace("_cell_length_a", "_cell_width_a", 1))
    flags = ["--dataset=csv", f"--manual_dir={table}", f"--data_dir={tmp_path / 'data'}", "--on_error=skip"]
    assert cli.main(["prepare", *flags]) == 0
    assert "my.csv, row 1" in caplog.text
    assert "skipped 1 of 4" in caplog.text


def test_a_full_disk_is_one_line(table, tmp_path, monkeypatch):
    def full(builder, **_):
        Path(builder.data_dir).parent.mkdir(parents=True)
        raise ValueError('Failed to finalize "train": write() failed: No space left on device;\nwriting x')

    monkeypatch.setattr(Builder, "download_and_prepare", full)
    with pytest.raises(UserError, match=r"no data set can be written below .*the disk is full") as error:
        prepare("csv", data_dir=tmp_path / "data", manual_dir=table)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "data").rglob("csv_*"))


def test_what_a_killed_run_left_is_removed(table, tmp_path):
    directory = prepare("csv", data_dir=tmp_path / "data", manual_dir=table)
    old, new = (directory.parent / f"incomplete.{name}_{directory.name}" for name in ("OLDOLD", "NEWNEW"))
    for folder in (old, new):
        folder.mkdir()
        (folder / "part").write_text("half")
    os.utime(old, (0, 0))
    prepare("csv", data_dir=tmp_path / "data", manual_dir=table)
    assert not old.exists()
    assert new.exists()


def test_the_command_names_what_cannot_be_learned(cif, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    for element in ("Po", "Na", "Cu"):
        (folder / f"{element}.cif").write_text(cif(element))
    many = Structure(Lattice.cubic(9), ["Fe"] * 21, np.random.default_rng(0).random((21, 3)))
    (folder / "many.cif").write_text(many.to(fmt="cif"))
    (folder / "long.cif").write_text(Structure(Lattice.orthorhombic(4, 5, 70), ["W"], [[0, 0, 0]]).to(fmt="cif"))
    (folder / "eight.cif").write_text((Structure.from_str(cif("Al"), fmt="cif") * (3, 3, 3)).to(fmt="cif"))
    flags = ["--dataset=csv", f"--manual_dir={folder}", f"--data_dir={tmp_path / 'data'}"]
    assert cli.main(["prepare", *flags]) == 0
    said = capsys.readouterr().err
    assert "2 of 6 crystals cannot be learned as they are:" in said
    assert "many (Fe): 21 atoms in the cell, and samples have at most 20" in said
    assert "long (W): '70.0' is not in the vocabulary" in said
    assert cli.main(["prepare", *flags, "--noprimitive"]) == 0
    assert "eight (Al): 27 atoms in the cell" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset": "mp21"}, "no data set 'mp21'; there are: mp20, perov5"),
        ({"dataset": "csv"}, "csv needs --manual_dir"),
        ({"dataset": "amcsd", "max_entries": 0}, "max_entries=0"),
    ],
)
def test_bad_requests_are_refused(arguments, message, tmp_path):
    with pytest.raises(UserError, match=message):
        prepare(**arguments, data_dir=tmp_path)


def test_bad_places_are_refused(table, tmp_path):
    with pytest.raises(UserError, match=r"there is no .*nowhere"):
        prepare("mp20", data_dir=tmp_path, manual_dir=tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no data set can be written below .*my\.csv"):
        prepare("csv", data_dir=table, manual_dir=table)


def test_the_command_says_where_and_how_many(table, tmp_path, capsys):
    assert cli.main(["prepare", "--dataset=csv", f"--manual_dir={table}", f"--data_dir={tmp_path / 'data'}"]) == 0
    directory, *rows = capsys.readouterr().out.splitlines()
    assert directory.startswith(str(tmp_path / "data" / "mp20" / "csv_"))
    assert [row.split() for row in rows] == [["train", "2"], ["val", "1"], ["test", "1"]]


def test_the_command_reports_bad_input_in_one_line(tmp_path, capsys):
    assert cli.main(["prepare", "--dataset=csv", f"--manual_dir={tmp_path}", f"--data_dir={tmp_path}"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert cli.main(["prepare", "--dataset=nothing"]) == 2


def test_a_slice_of_mp20_open_agrees_with_its_tables(shared, tmp_path):
    folder = shared / "data" / "mp20_open"
    directory = prepare("mp20_open", data_dir=tmp_path, manual_dir=folder, max_entries=120)
    assert mp20.dataset_info(directory).rows == {"train": 100, "val": 8, "test": 12}
    for split in ("train", "val", "test"):
        with gzip.open(folder / f"{split}.csv.gz", "rt", newline="") as file:
            rows = {row["material_id"]: row for row in csv.DictReader(file)}
        for record in mp20.open_split(directory, split):
            row = rows[record.material_id]
            assert record.cif == row["cif"]
            assert record.formula == row["pretty_formula"]
            assert record.formation_energy_per_atom == float(row["formation_energy_per_atom"])
            assert record.spacegroup == int(row["spacegroup.number"])
            assert len(record.frac_coords) == len(record.atomic_numbers) <= 52
