"""Compiled programs on disk: a program is traced, lowered and compiled once per installation.

JAX's own compilation cache is read after tracing and lowering, which take longer than the program runs for a small
model. Here an executable is found by a key that needs neither: the source of this package, the versions, the device,
the settings, and the shapes of the arguments.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import importlib.metadata
import json
import os
import pickle
import platform
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh

from crystal_jax import progress
from crystal_jax.errors import UserError
from crystal_jax.storage.files import cache_folder, write_bytes, write_text

_FOLDER = "executables"
_SECONDS = "compile_seconds.json"  # how long each program took to compile the last time, by its name
_MAX_BYTES = 1 << 30  # of all entries together; the least recently used ones are deleted
_PACKAGES = ("jax", "jaxlib", "flax", "numpy")
# Configuration of JAX that changes what is compiled.
_CONFIGURATION = (
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_enable_x64",
    "jax_numpy_dtype_promotion",
    "jax_threefry_partitionable",
    "jax_debug_nans",
    "jax_debug_infs",
    "jax_random_seed_offset",
    "jax_optimization_level",
)
_compiling = threading.Lock()
_ENVIRONMENT = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")


class ProgramCache:
    """The programs of one mesh and one set of settings.

    Args:
        mesh: Device mesh that the programs run on.
        settings: Whatever decides a program beside its name and its arguments.
    """

    def __init__(self, mesh: Mesh, settings: Mapping[str, Any]):
        # With several processes each would have to find the same entries, so that none compiles alone.
        self._is_used = jax.process_count() == 1 and not os.environ.get("CRYSTAL_JAX_NO_PROGRAM_CACHE")
        try:
            self._folder = cache_folder() / _FOLDER
        except RuntimeError:  # there is no home folder
            self._is_used = False
        self._devices = list(mesh.devices.flat)
        devices = [(device.platform, device.device_kind, device.id) for device in self._devices]
        self._described = {
            "settings": dict(settings),
            "mesh": [list(mesh.shape.items()), devices],
            "runtime": self._devices[0].client.platform_version,
            "host": _host(),
        }

    def program(self, name: str, jitted: Any) -> Any:
        """Returns a function that loads the program for its first arguments, or compiles and keeps it.

        Args:
            name: Name of the program, unique among the programs of these settings.
            jitted: Result of `jax.jit`. It is called with arguments of the same shapes each time.
        """
        if not self._is_used:
            return jitted
        compiled: Any = None
        lock = threading.Lock()

        def call(*arguments: Any) -> Any:
            nonlocal compiled
            with lock:
                if compiled is None:
                    compiled = self._load_or_compile(name, jitted, arguments)
            return compiled(*arguments)

        return call

    def _load_or_compile(self, name: str, jitted: Any, arguments: tuple[Any, ...]) -> Any:
        described = self._described | {
            "name": name,
            "arguments": _signature(arguments),
            "configuration": {name: str(getattr(jax.config, name)) for name in _CONFIGURATION},
            "environment": {name: os.environ.get(name) for name in _ENVIRONMENT},
        }
        key = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()
        path = self._folder / key
        loaded = _load(path, self._devices)
        if loaded is not None:
            return loaded
        with _alone(path):
            loaded = _load(path, self._devices)  # another process may have compiled it meanwhile
            return loaded if loaded is not None else self._compile(name, jitted, arguments, path)

    def _compile(self, name: str, jitted: Any, arguments: tuple[Any, ...], path: Path) -> Any:
        before = _last_seconds(self._folder).get(name)
        progress.say(f"compiling {name!r}" + (f", which took {before:.0f} s the last time" if before else ""))
        start = time.monotonic()
        with _without_jax_cache():
            compiled = jitted.lower(*arguments).compile()
        _store(path, compiled)
        _note_seconds(self._folder, name, time.monotonic() - start)
        return compiled


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Waits while another process on this machine compiles the same program."""
    waiting = path.with_suffix(".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(waiting, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:  # the folder cannot be written: nothing will be kept
        yield
        return
    try:
        with contextlib.suppress(OSError):  # the file system has no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        waiting.unlink(missing_ok=True)
        os.close(descriptor)


@contextlib.contextmanager
def _without_jax_cache() -> Iterator[None]:
    """Compiles anew: an executable out of JAX's own cache loses its functions when it is serialised again."""
    name = "jax_enable_compilation_cache"
    with _compiling:
        enabled = getattr(jax.config, name)
        compilation_cache.reset_cache()  # it remembers whether it is enabled
        jax.config.update(name, False)
        try:
            yield
        finally:
            jax.config.update(name, enabled)
            compilation_cache.reset_cache()


def _signature(arguments: tuple[Any, ...]) -> list[Any]:
    """Returns structure, shapes, types and shardings of arguments."""
    leaves, structure = jax.tree.flatten(arguments)
    return [
        str(structure),
        [
            (str(jax.numpy.result_type(leaf)), jax.numpy.shape(leaf), str(getattr(leaf, "sharding", None)))
            for leaf in leaves
        ],
    ]


def _source_digest() -> str:
    """Returns a digest of this package's source."""
    source = hashlib.sha256()
    package = Path(__file__).parent
    for path in sorted(package.rglob("*.py")):
        source.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes())
    return source.hexdigest()


_SOURCE = _source_digest()  # at import: the files may change while the process runs


@functools.cache
def _host() -> dict[str, Any]:
    """Returns what an executable depends on beside its program: source, versions, instructions of the processor."""
    features = ""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return {
        "source": _SOURCE,
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "machine": [platform.machine(), platform.processor(), hashlib.sha256(features.encode()).hexdigest()],
        "cores": os.cpu_count(),
    }


def _load(path: Path, devices: list[jax.Device]) -> Any:
    """Returns the executable in a file; None if there is none, or it is damaged or of another runtime."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, payload = content[:32], content[32:]
    if hashlib.sha256(payload).digest() != digest:
        return None
    try:
        serialized, inputs, outputs = pickle.loads(payload)
        loaded = serialize_executable.deserialize_and_load(
            serialized, inputs, outputs, backend=devices[0].client, execution_devices=devices
        )
    except Exception:  # the runtime refuses it, in ways of its own; the program is then compiled
        return None
    with contextlib.suppress(OSError):
        os.utime(path)
    return loaded


def _store(path: Path, compiled: Any) -> None:
    """Keeps an executable, where the runtime can serialise it and the disk takes it."""
    try:
        payload = pickle.dumps(serialize_executable.serialize(compiled))
    except Exception:  # the runtime cannot serialise it, or a part of its description cannot be pickled
        return
    with contextlib.suppress(OSError, UserError):  # a program that is not kept is compiled again
        write_bytes(path, hashlib.sha256(payload).digest() + payload)
        _trim(path.parent)


def _trim(folder: Path) -> None:
    """Deletes the least recently used entries beyond the size limit."""
    entries = []
    for path in folder.iterdir():
        with contextlib.suppress(OSError):  # another process may have deleted it
            entries.append((path.stat().st_mtime, path.stat().st_size, path))
    total = 0
    for _, size, path in sorted(entries, reverse=True):
        total += size
        if total > _MAX_BYTES:
            path.unlink(missing_ok=True)


def _last_seconds(folder: Path) -> dict[str, float]:
    try:
        found = json.loads((folder / _SECONDS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    numbers = found.items() if isinstance(found, dict) else ()
    return {name: float(seconds) for name, seconds in numbers if isinstance(seconds, int | float)}


def _note_seconds(folder: Path, name: str, seconds: float) -> None:
    with contextlib.suppress(OSError, UserError):
        write_text(folder / _SECONDS, json.dumps(_last_seconds(folder) | {name: round(seconds, 1)}))
