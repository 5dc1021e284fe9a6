import numpy as np
import pytest

from crystal_jax.errors import UserError
from crystal_jax.evaluate.fingerprints import fingerprints as module
from crystal_jax.evaluate.fingerprints.coordination import structure_fingerprint
from crystal_jax.evaluate.fingerprints.fingerprints import fingerprints
from crystal_jax.storage import worker_pool as parallel
from crystal_jax.storage.content_cache import Cache
from crystal_jax.storage.files import cache_folder
from crystal_jax.structures import Entry, parse


@pytest.fixture
def samples(salt, cesium_chloride):
    texts = [salt.to(fmt="cif"), "", cesium_chloride.to(fmt="cif"), salt.to(fmt="cif")]
    return [parse(Entry(str(i), text)) for i, text in enumerate(texts)]


def test_rows_know_their_places(samples):
    found = fingerprints(samples)
    assert found.places.tolist() == [0, 2, 3]
    assert list(found.failures) == [1]
    np.testing.assert_allclose(found.structure[1], structure_fingerprint(samples[2].structure), atol=1e-12)
    again = found.at([3, 1, 0, 0])
    assert again.places.tolist() == [3, 0, 0]
    np.testing.assert_array_equal(again.composition, found.composition[[2, 0, 0]])


def test_each_structure_is_computed_once(samples, monkeypatch):
    fingerprints(samples)
    monkeypatch.setattr(module, "_compute", lambda cif: pytest.fail("computed again"))
    assert len(fingerprints(samples)) == 3


def test_reasons_are_kept(samples, monkeypatch):
    monkeypatch.setattr("crystal_jax.evaluate.fingerprints.coordination.MAX_POINTS", 10)
    for _ in range(2):
        found = fingerprints(samples[:1])
        assert found.failures == {0: "no fingerprint: more than 10 atoms within 7 Å"}
        assert found.structure.shape == (0, 61)
        monkeypatch.setattr(module, "_compute", lambda cif: pytest.fail("computed again"))


def test_several_processes_give_the_same(samples, monkeypatch):
    alone = fingerprints(samples)
    monkeypatch.setattr(parallel, "_WORTH_A_PROCESS", 1)
    monkeypatch.setattr(module, "CACHE", "another")
    together = fingerprints(samples, workers=2)
    np.testing.assert_array_equal(together.structure, alone.structure)


def test_cache_survives_and_keeps_apart():
    cache = Cache("try")
    cache.put({"a": b"1", "b": b"2"})
    cache.put({"a": b"3"})
    cache.close()
    again = Cache("try")
    assert again.get(["a", "b", "c"]) == {"a": b"3", "b": b"2"}
    assert again.get([]) == {}
    again.close()
    other = Cache("other")
    assert other.get(["a"]) == {}
    other.close()


def test_a_cache_that_cannot_be(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CRYSTAL_JAX_CACHE", str(tmp_path / "file" / "folder"))
    with pytest.raises(UserError, match="set CRYSTAL_JAX_CACHE to another folder"):
        Cache("try")


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.delenv("CRYSTAL_JAX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "crystal_jax"
