import errno

import pytest

from crystal_jax.errors import UserError
from crystal_jax.storage.files import is_new, new_folder, write_text


def fill_the_disk(monkeypatch):
    def replace(self, target):
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr("pathlib.Path.replace", replace)


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path, monkeypatch):
    write_text(tmp_path / "run.json", "old")
    fill_the_disk(monkeypatch)
    with pytest.raises(UserError, match=r"cannot write .*run\.json: No space left on device; free some space"):
        write_text(tmp_path / "run.json", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    assert (tmp_path / "run.json").read_text() == "old"


def test_a_failed_folder_leaves_nothing(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="No such file"), new_folder(tmp_path / "runs") as half:
        (half / "none" / "a.txt").write_text("a")
    assert not list(tmp_path.iterdir())
    (tmp_path / "runs").mkdir()  # an empty folder may become the output
    with new_folder(tmp_path / "runs") as half:
        (half / "a.txt").write_text("a")
    assert [path.name for path in tmp_path.rglob("*")] == ["runs", "a.txt"]
    fill_the_disk(monkeypatch)
    with pytest.raises(UserError, match="No space left on device"), new_folder(tmp_path / "other"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_temporaries_of_a_killed_process_do_not_block_a_folder(tmp_path):
    assert is_new(tmp_path / "none")
    assert is_new(tmp_path)
    (tmp_path / ".run.json.abc.part").write_text("{")
    assert is_new(tmp_path)
    (tmp_path / "samples.csv").write_text("")
    assert not is_new(tmp_path)
    assert not is_new(tmp_path / "samples.csv")
