import sqlite3

import pytest

from crystal_jax.errors import UserError
from crystal_jax.storage.content_cache import Cache
from crystal_jax.storage.files import cache_folder


@pytest.fixture
def path():
    cache = Cache("test")
    cache.put({f"crystal {i}": bytes([i % 256]) * 500 for i in range(2000)})
    cache.close()
    return cache_folder() / "test.sqlite"


@pytest.mark.parametrize("damage", ["no database", "emptied", "middle", "end", "other columns"])
def test_a_damaged_file_is_made_anew_with_one_line(path, capsys, damage):
    content = path.read_bytes()
    if damage == "no database":
        path.write_bytes(b"not a database" * 100)
    elif damage == "emptied":
        path.write_bytes(bytes(len(content)))
    elif damage == "middle":
        path.write_bytes(content[:8192] + bytes(len(content) - 16384) + content[-8192:])
    elif damage == "end":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.unlink()
        with sqlite3.connect(path) as file:
            file.execute("CREATE TABLE found (a, b)")
        file.close()
    cache = Cache("test")
    assert cache.get([f"crystal {i}" for i in range(2000)]).keys() <= {f"crystal {i}" for i in range(2000)}
    cache.put({"new": b"value"})
    assert cache.get(["new"]) == {"new": b"value"}
    cache.close()
    said = capsys.readouterr().err
    assert said.count("is damaged") == said.count("\n") == 1
    assert str(path) in said


def test_a_place_that_cannot_be_written_to(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CRYSTAL_JAX_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="set CRYSTAL_JAX_CACHE to another folder"):
        Cache("test")
