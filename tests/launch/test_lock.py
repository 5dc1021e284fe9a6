"""uv.lock is the one source of pins: it fits pyproject.toml, and the requirements files are exported from it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = ("requirements.txt", "requirements-dev.txt", "requirements-energies.txt", "requirements-peers.txt")


@pytest.fixture
def check(tmp_path):
    """Runs `launch/lock.sh --check` on a copy of the files that it reads, which a test may change."""
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if uv is None:
        pytest.skip("uv is not installed: pip install uv")
    for name in ("pyproject.toml", "uv.lock", "launch/lock.sh", *FILES):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    environment = {
        **os.environ,
        "PATH": f"{Path(uv).parent}{os.pathsep}{os.environ['PATH']}",
        "UV_PYTHON": sys.executable,
        "UV_NO_CACHE": "1",
    }

    def run():
        script = tmp_path / "launch/lock.sh"
        return subprocess.run([script, "--check"], capture_output=True, text=True, env=environment)

    return run


def test_requirements_files_are_exports_of_the_lock(check):
    done = check()
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", FILES)
def test_a_changed_pin_is_found(check, tmp_path, name):
    path = tmp_path / name
    *lines, last = path.read_text().splitlines()
    path.write_text("\n".join([*lines, f"{last.partition('==')[0]}==0.0.1"]) + "\n")
    done = check()
    assert done.returncode == 1
    assert done.stderr == f"{name} does not fit uv.lock: run launch/lock.sh\n"


def test_a_new_dependency_is_found(check, tmp_path):
    path = tmp_path / "pyproject.toml"
    path.write_text(path.read_text().replace('    "jax>=0.10.2", ', '    "six",\n    "jax>=0.10.2", '))
    done = check()
    assert done.returncode == 1
    assert done.stderr.endswith("uv.lock does not fit pyproject.toml: run launch/lock.sh\n")
    assert done.stderr.count("run launch/lock.sh") == 1


def test_installation_needs_no_resolver():
    """Every requirement is one version, so `--no-deps` installs all of them."""
    for name in FILES:
        pins = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
        assert pins
        assert all("==" in pin.partition(";")[0] for pin in pins), name
