"""Fixtures for all tests."""

import os
import tempfile
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

# Before JAX is imported: the tests shard over four devices.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
    # Compiling is most of the time of these tests, and none of them is about the speed of the result.
    " --xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
)
# Most programs of these tests are compiled more than once, by a test, worker or process of its own: they are kept for
# as long as the tests run. Workers of pytest-xdist find the folder of the process that started them.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _compiled = tempfile.TemporaryDirectory(prefix="crystal_jax-compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled.name
    os.environ.setdefault("CRYSTAL_JAX_CACHE", f"{_compiled.name}/crystal_jax")
# Nothing is fetched: results shall not depend on the network.
os.environ["PIP_NO_INDEX"] = "1"
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
# Machines that run tests are busy; examples are drawn from a fixed seed so that a failure can be repeated.
hypothesis.settings.register_profile("tests", deadline=None, max_examples=50, derandomize=True)
hypothesis.settings.load_profile("tests")

from tests.byte_pairs import write_byte_pairs  # noqa: E402
from tests.experiments import training_config  # noqa: E402
from tests.rock_salts import write_rock_salts  # noqa: E402


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of the data that is too large for the repository; tests that need it are skipped without it."""
    default = Path(__file__).resolve().parents[1].parent / "shared"
    folder = Path(os.environ.get("CRYSTAL_JAX_SHARED", default))
    if not folder.is_dir():
        pytest.skip(f"no {folder}; set CRYSTAL_JAX_SHARED")
    return folder


@pytest.fixture(scope="session")
def bpe(tmp_path_factory) -> Path:
    """The folder of a byte-level BPE whose pieces are those of crystals."""
    folder = tmp_path_factory.mktemp("bpe")
    write_byte_pairs(folder)
    return folder


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Path:
    """A prepared data set of a few rock salts."""
    from crystal_jax.data.prepare import prepare

    root = tmp_path_factory.mktemp("dataset")
    return prepare("csv", data_dir=root / "data", manual_dir=write_rock_salts(root / "cifs"))


@pytest.fixture(scope="session")
def trained(tmp_path_factory, dataset) -> Path:
    """The workdir of one short training run: six steps on a mesh of 2 x 2 devices."""
    from crystal_jax.train.run import train

    workdir = tmp_path_factory.mktemp("trained") / "run"
    train(training_config(str(dataset)), workdir=workdir)
    return workdir


@pytest.fixture(scope="session")
def stating(dataset, tmp_path_factory) -> Path:
    """The workdir of a model that states compositions first, after a few steps on rock salts."""
    from crystal_jax.train.run import train

    workdir = tmp_path_factory.mktemp("stating") / "run"
    config = training_config(
        str(dataset),
        text={"version": "composition_first"},
        task={"infill": 0.2},
        optimizer={"peak_lr": 2e-2},
        train={"num_steps": 20, "eval_every": 20, "save_every": 20, "eval_num_samples": 3},
    )
    train(config, workdir=workdir)
    return workdir


@pytest.fixture
def salt() -> Structure:
    """NaCl, conventional cell."""
    sodium = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    return Structure(Lattice.cubic(5.64), ["Na"] * 4 + ["Cl"] * 4, [*sodium, *(sodium + 0.5)])


@pytest.fixture
def cesium_chloride() -> Structure:
    return Structure(Lattice.cubic(4.12), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
