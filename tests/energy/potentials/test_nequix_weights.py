import io
import urllib.error

import pytest

from crystal_jax.energy.potentials import nequix_weights as module
from crystal_jax.energy.potentials.nequix_weights import FILE, URL, nequix_file
from crystal_jax.errors import UserError
from crystal_jax.storage.files import cache_folder


@pytest.fixture
def file(shared):
    return shared / "weights/nequix" / FILE


def test_a_file_or_its_folder_is_checked(file, tmp_path):
    assert nequix_file(file) == file
    assert nequix_file(str(file.parent)) == file
    with pytest.raises(UserError, match=r"nequix-oam-1\.nqx is missing; give --energy_weights the"):
        nequix_file(tmp_path)
    other = tmp_path / "other.nqx"
    other.write_bytes(b"something else")
    with pytest.raises(UserError, match=r"other\.nqx is not the published nequix-oam-1\.nqx.*give --energy_weights"):
        nequix_file(other)
    with pytest.raises(UserError, match="weights is 3, of type int; it must be a path"):
        nequix_file(3)


def test_weights_are_fetched_once(file, monkeypatch, capsys):
    asked = []

    def urlopen(url, **_):
        asked.append(url)
        return io.BytesIO(file.read_bytes())

    monkeypatch.setattr(module.urllib.request, "urlopen", urlopen)
    found = nequix_file()
    assert found == cache_folder() / "nequix" / FILE
    assert nequix_file() == found
    assert asked == [URL]
    assert "fetching Nequix's weights" in capsys.readouterr().err
    found.write_bytes(b"damaged")
    with pytest.raises(UserError, match="delete it to fetch it again"):
        nequix_file()


def test_without_a_network_it_is_said_what_to_do(monkeypatch):
    def urlopen(*_, **__):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(module.urllib.request, "urlopen", urlopen)
    with pytest.raises(
        UserError, match=r"no route to host.*download https://github\.com/atomicarchitects/nequix"
    ) as error:
        nequix_file()
    assert str(cache_folder() / "nequix" / FILE) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_wrong_download_is_not_kept(monkeypatch):
    monkeypatch.setattr(module.urllib.request, "urlopen", lambda *_, **__: io.BytesIO(b"<html>"))
    with pytest.raises(UserError, match="is not the published"):
        nequix_file()
    assert not (cache_folder() / "nequix").exists()
