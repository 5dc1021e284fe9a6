"""Programs are kept on disk, found without tracing, and never taken for others."""

from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crystal_jax import program_cache
from crystal_jax.config import MeshConfig
from crystal_jax.program_cache import ProgramCache
from crystal_jax.sharding import make_mesh


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("CRYSTAL_JAX_CACHE", str(tmp_path))
    return tmp_path / "executables"


def cache(**settings):
    return ProgramCache(make_mesh(MeshConfig(data=1, fsdp=1, tensor=1), jax.devices()[:1]), settings)


class Traced:
    """A function that counts how often it is traced."""

    def __init__(self, factor=2.0):
        self.times, self.factor = 0, factor

    def __call__(self, x, tree):
        self.times += 1
        return {"y": x * self.factor + tree["a"]}


def run(cached, function, x=3.0):
    program = cached.program("twice", jax.jit(function))
    results = [program(jnp.full(4, x), {"a": np.ones(4, np.float32)}) for _ in range(2)]
    np.testing.assert_allclose(results[0]["y"], results[1]["y"])
    return float(results[0]["y"][0])


def entries(folder):
    return [path for path in folder.iterdir() if len(path.name) == 64]


def test_a_second_process_traces_nothing(folder):
    first, second = Traced(), Traced()
    assert run(cache(a=1), first) == run(cache(a=1), second) == 7
    assert (first.times, second.times) == (1, 0)
    assert len(entries(folder)) == 1


@pytest.mark.parametrize("change", ["settings", "source", "arguments", "environment"])
def test_a_program_is_not_taken_for_another(folder, monkeypatch, change):
    run(cache(a=1), Traced())
    other = Traced(factor=5.0)
    if change == "source":
        host = program_cache._host()
        monkeypatch.setattr(program_cache, "_host", lambda: host | {"source": "another"})
    if change == "environment":
        monkeypatch.setenv("LIBTPU_INIT_ARGS", "--another")
    program = cache(a=2 if change == "settings" else 1).program("twice", jax.jit(other))
    shape = (5,) if change == "arguments" else (4,)
    assert float(program(jnp.full(shape, 3.0), {"a": np.ones(shape, np.float32)})["y"][0]) == 16
    assert len(entries(folder)) == 2


def test_processes_that_need_the_same_program_compile_it_once(folder):
    """Here threads stand for processes: each has its own cache, and locks the file on its own."""
    programs = [Traced(), Traced(), Traced()]
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(run, [cache() for _ in programs], programs)) == [7, 7, 7]
    assert sum(program.times for program in programs) == 1
    assert len(list(folder.rglob("*.lock"))) == 0


@pytest.mark.parametrize("damage", [b"", b"\0" * 100, "half", "pickle"])
def test_a_damaged_entry_is_made_anew(folder, damage):
    run(cache(), Traced())
    (entry,) = entries(folder)
    content = entry.read_bytes()
    if damage == "half":
        damage = content[: len(content) // 2]
    elif damage == "pickle":  # whole, but nothing that the runtime could load
        import hashlib
        import pickle

        payload = pickle.dumps((b"no executable", None, None))
        damage = hashlib.sha256(payload).digest() + payload
    entry.write_bytes(damage)
    again, third = Traced(), Traced()
    assert run(cache(), again) == 7
    assert again.times == 1
    assert run(cache(), third) == 7
    assert third.times == 0


def test_the_folder_is_bounded(folder, monkeypatch):
    run(cache(a=0), Traced())
    size = entries(folder)[0].stat().st_size
    monkeypatch.setattr(program_cache, "_MAX_BYTES", int(3.7 * size))
    for number in range(1, 6):
        run(cache(a=number), Traced())
    assert len(entries(folder)) == 3
    latest = Traced()
    run(cache(a=5), latest)
    assert latest.times == 0


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CRYSTAL_JAX_CACHE", str(tmp_path / "file" / "folder"))
    assert run(cache(), Traced()) == 7


def test_several_devices(folder):
    mesh = make_mesh(MeshConfig(data=2, fsdp=1, tensor=2), jax.devices()[:4])
    where = jax.NamedSharding(mesh, jax.P("data"))
    for times in (1, 0):
        function = Traced()
        program = ProgramCache(mesh, {}).program("twice", jax.jit(function, out_shardings=where))
        y = program(jax.device_put(jnp.full(4, 3.0), where), {"a": np.ones(4, np.float32)})["y"]
        assert (float(y[0]), y.sharding, function.times) == (7, where, times)
