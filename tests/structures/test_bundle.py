import gzip
import io
import os
import tarfile
import zipfile

import pytest

from crystal_jax.errors import UserError
from crystal_jax.structures import bundle, parse, read_entries


@pytest.fixture
def cif(salt):
    return salt.to(fmt="cif").encode()


def names(path):
    return [entry.name for entry in read_entries(path)]


def test_a_folder_is_read_whatever_the_case_of_its_ends(tmp_path, cif, salt, capsys):
    (tmp_path / "sub" / "deep").mkdir(parents=True)
    (tmp_path / "dir.cif").mkdir()
    for name in ("one.cif", "TWO.CIF", "sub/three.cif", "sub/deep/one.Cif", "dir.cif/x.cif"):
        (tmp_path / name).write_bytes(cif)
    (tmp_path / "four.cif.gz").write_bytes(gzip.compress(cif))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "CONTCAR").write_text(salt.to(fmt="poscar"))
    for name in ("._one.cif", ".DS_Store", "b.pdf", "a.txt", "run.json"):
        (tmp_path / name).write_text("{}")
    os.mkfifo(tmp_path / "pipe.cif")
    (tmp_path / "nowhere.cif").symlink_to("absent")
    (tmp_path / "circle").symlink_to(".")
    entries = read_entries(tmp_path)
    expected = {"one", "TWO", "sub_three", "sub_deep_one", "dir.cif_x", "four", "run_CONTCAR"}
    assert {entry.name for entry in entries} == expected
    assert all(parse(entry).structure.formula == "Na4 Cl4" for entry in entries)
    assert f"{tmp_path}: 6 files are no crystals: a.txt, b.pdf, circle, ..." in capsys.readouterr().err


def test_names_are_unique_and_on_one_line(tmp_path, cif):
    (tmp_path / "a").mkdir()
    for name in ("a_b.cif", "a/b.cif", "a_b.CIF", "a_b_2.cif"):
        (tmp_path / name).write_bytes(cif)
    (tmp_path / os.fsdecode(b"\xff\r\n.cif")).write_bytes(cif)
    found = names(tmp_path)
    assert len(set(found)) == len(found) == 5
    assert {"a_b", "a_b_2"} < set(found)
    assert "? " in found


def test_crystals_beside_their_table_are_not_read_in_its_place(tmp_path, cif):
    (tmp_path / "cif").mkdir()
    (tmp_path / "cif" / "a.cif").write_bytes(cif)
    (tmp_path / "samples.csv").write_text("cif\nx\n")
    with pytest.raises(UserError, match=r"holds samples\.csv beside crystal files; give .*samples\.csv"):
        read_entries(tmp_path)


def test_the_only_table_of_a_folder_is_read(tmp_path):
    (tmp_path / "crystals.csv").write_text("name,cif\nx,y\n")
    assert names(tmp_path) == ["x"]
    (tmp_path / "more.csv").write_text("name,cif\nx,y\n")
    with pytest.raises(UserError, match=r"no crystal files .*, only crystals\.csv, more\.csv"):
        read_entries(tmp_path)


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".TGZ", ".tar.xz"])
def test_an_archive_is_read_in_memory(tmp_path, cif, suffix, capsys):
    path = tmp_path / f"crystals{suffix}"
    held = {"x/one.cif": cif, "../../two.CIF": cif, "/abs/three.cif.gz": gzip.compress(cif), "note.txt": b"hi"}
    held["__MACOSX/x/._one.cif"] = b"no crystal"
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w") as file:
            for name, content in held.items():
                file.writestr(name, content)
    else:
        with tarfile.open(path, f"w:{suffix.lower()[-2:].replace('ar', '').replace('tgz', 'gz').strip('.')}") as file:
            for name, content in held.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
            link = tarfile.TarInfo("link.cif")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            file.addfile(link)
    before = sorted(tmp_path.rglob("*"))
    assert names(path) == ["x_one", "two", "abs_three"]
    assert "no crystals: note.txt" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_an_archive_is_bounded(tmp_path, cif, monkeypatch):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("zeros.cif", bytes(10**6))
        file.writestr("zeros.cif.gz", gzip.compress(bytes(10**6)))
    for name, limit, message in [
        ("MAX_FILE", 10**5, "zeros.cif has more than 100,000 bytes"),
        ("MAX_TOTAL", 10**5, "holds more than 100,000 bytes, unpacked"),
        ("MAX_FILES", 1, "holds more than 1 files"),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(bundle, name, limit)
            with pytest.raises(UserError, match=message):
                read_entries(tmp_path / "a.zip")


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz", "a.tar"])
def test_a_damaged_archive_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK, or not")
    with pytest.raises(UserError, match=f"{name} cannot be read"):
        read_entries(tmp_path / name)
