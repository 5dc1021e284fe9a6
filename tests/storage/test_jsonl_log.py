import errno
import json
import subprocess
import sys

import pytest

from crystal_jax.errors import UserError
from crystal_jax.storage.files import LOCK
from crystal_jax.storage.jsonl_log import JsonlLog, ensure_same_run, release


@pytest.fixture
def folder(tmp_path):
    yield tmp_path / "out"
    release(tmp_path / "out")


def test_rows_are_keyed_by_index(tmp_path):
    journal = JsonlLog(tmp_path / "rows.jsonl")
    journal.append([{"index": 1, "text": "a"}, {"index": 0, "text": "b"}])
    journal.append([{"index": 1, "text": "a"}])  # a second process wrote the same
    assert journal.rows() == [{"index": 1, "text": "a"}, {"index": 0, "text": "b"}]


def test_a_line_that_was_cut_off_is_dropped(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"index": 0}\n{"index": 1, "te\xff')
    assert JsonlLog(path).rows() == [{"index": 0}]
    assert path.read_bytes() == b'{"index": 0}\n'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("\0" * 50, "line 2"),
        ("{", "line 2"),
        ("3", "line 2: it is 3, not an object"),
        ('{"text": "x"}', "line 2: index is None, not a whole number"),
        ('{"index": -1, "text": "x"}', "line 2: index is -1; it must be at least 0"),
        ('{"index": 1, "text": null}', "line 2: text is None, not a text"),
        ('{"index": "1", "text": "x"}', "line 2: index is '1', not a whole number"),
    ],
)
def test_a_garbled_line_is_named_with_what_to_do(tmp_path, line, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"index": 0, "text": "a"}}\n{line}\n{{"index": 2, "text": "c"}}\n')
    with pytest.raises(UserError, match=message) as error:
        JsonlLog(path, {"index": int, "text": str}).rows()
    assert "delete this line to have its row made again; the other lines are whole" in str(error.value)


@pytest.mark.parametrize("content", ["", "[]", '{"request": 3}', "\0\0", "{}"])
def test_a_damaged_request_is_one_line(folder, content):
    folder.mkdir()
    (folder / "run.json").write_text(content)
    with pytest.raises(UserError, match=r"run\.json.*what lies beside it is still whole: copy samples elsewhere"):
        ensure_same_run(folder, {"seed": 0}, {}, what="samples")
    assert not (folder / LOCK).exists()
    assert (folder / "run.json").read_text() == content


def test_a_disk_that_fills_while_the_request_is_written_does_not_block_the_folder(folder, monkeypatch):
    def replace(self, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr("pathlib.Path.replace", replace)
        with pytest.raises(UserError, match="No space left on device; free some space"):
            ensure_same_run(folder, {"seed": 0}, {})
    assert not list(folder.iterdir())
    (folder / ".run.json.x.part").write_text("{")  # of a process that was killed then
    ensure_same_run(folder, {"seed": 0}, {})
    assert json.loads((folder / "run.json").read_text())["request"] == {"seed": 0}


def test_two_processes_cannot_claim_one_folder(folder):
    ensure_same_run(folder, {"seed": 0}, {})
    code = (
        "import sys; from pathlib import Path; from crystal_jax.storage.jsonl_log import ensure_same_run\n"
        "ensure_same_run(Path(sys.argv[1]), {'seed': 0}, {})"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "is being written by process" in done.stderr
    release(folder)
    assert subprocess.run([sys.executable, "-c", code, str(folder)], check=False).returncode == 0
    assert not (folder / LOCK).exists()


def test_another_request_is_refused(folder):
    ensure_same_run(folder, {"seed": 0}, {})
    with pytest.raises(UserError, match=r"holds samples of another request \(other seed\)"):
        ensure_same_run(folder, {"seed": 1}, {}, what="samples")
