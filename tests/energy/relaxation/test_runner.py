import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from joblib.externals.loky import get_reusable_executor

from crystal_jax.energy.relaxation import runner
from crystal_jax.energy.relaxation.journal import key_of, read_journals
from crystal_jax.energy.relaxation.runner import relax_all
from crystal_jax.energy.settings import RelaxJob, RelaxSettings
from crystal_jax.errors import UserError
from tests.energy.conftest import distorted
from tests.energy.relaxation import killers

ROOT = Path(__file__).parents[2]
SETTINGS = RelaxSettings(fmax=0.05, batch_atoms=8)
# What a process of its own does: relaxes the crystals of a file.
CALL = """
import json, sys
from pathlib import Path
from crystal_jax.energy.relaxation.runner import relax_all
from crystal_jax.energy.settings import RelaxJob
from crystal_jax.energy.settings import RelaxSettings
cifs, folder, weights, workers = sys.argv[1:5]
settings = RelaxSettings(fmax=0.05, batch_atoms=8)
job = RelaxJob(model="m3gnet", weights=weights, settings=settings)
relax_all(json.loads(Path(cifs).read_text()), job, Path(folder), workers=int(workers))
"""


@pytest.fixture(scope="session")
def cifs():
    return [distorted(seed).to(fmt="cif") for seed in range(40)]


@pytest.fixture
def job(weights):
    return RelaxJob(model="m3gnet", weights=str(weights), settings=SETTINGS)


def lines(folder):
    return [json.loads(x) for path in folder.glob("*.jsonl") for x in path.read_text().splitlines() if complete(x)]


def complete(line):
    try:
        return bool(json.loads(line))
    except ValueError:
        return False


def test_each_crystal_once(cifs, job, tmp_path, m3gnet, monkeypatch):
    monkeypatch.setattr(runner, "_loaded", lambda *_: m3gnet)
    first = relax_all(cifs[:3], job, tmp_path)
    again = relax_all([*cifs[:4], cifs[0]], job, tmp_path)
    assert list(again) == [key_of(cif) for cif in cifs[:4]]
    assert {key: again[key] for key in first} == first
    assert len(lines(tmp_path)) == 4
    row = first[key_of(cifs[0])]
    assert (row["status"], row["num_atoms"]) == ("converged", 2)
    assert row["energy"] < row["first_energy"]
    assert "_cell_length_a" in row["relaxed_cif"]


def test_a_line_that_was_cut_off_is_done_again(cifs, job, tmp_path, m3gnet, monkeypatch):
    monkeypatch.setattr(runner, "_loaded", lambda *_: m3gnet)
    relax_all(cifs[:2], job, tmp_path)
    (journal,) = tmp_path.glob("*.jsonl")
    journal.write_text(journal.read_text()[:-40])
    assert len(read_journals(tmp_path)) == 1
    assert len(relax_all(cifs[:2], job, tmp_path)) == 2
    assert len(lines(tmp_path)) == 2


@pytest.mark.parametrize(
    "line", [b"\0" * 40, b"\xff\xfe", b"3", b"[]", b'{"key": 3}', b'{"key": "x", "relaxed_cif": 3}', b"[" * 100_000]
)
def test_a_damaged_line_is_done_again(cifs, job, tmp_path, m3gnet, monkeypatch, line):
    monkeypatch.setattr(runner, "_loaded", lambda *_: m3gnet)
    first = relax_all(cifs[:2], job, tmp_path)
    (journal,) = tmp_path.glob("*.jsonl")
    whole = journal.read_bytes()
    journal.write_bytes(line + b"\n" + whole)
    assert relax_all(cifs[:2], job, tmp_path) == first


@pytest.mark.parametrize("change", [{"status": "unknown"}, {"energy": "low"}, {"steps": None}, {"reason": 3}])
def test_a_row_of_wrong_types_is_done_again(cifs, job, tmp_path, m3gnet, monkeypatch, change):
    monkeypatch.setattr(runner, "_loaded", lambda *_: m3gnet)
    first = relax_all(cifs[:1], job, tmp_path)
    (journal,) = tmp_path.glob("*.jsonl")
    journal.write_text(json.dumps(json.loads(journal.read_text()) | change) + "\n")
    again = relax_all(cifs[:1], job, tmp_path)
    assert again[key_of(cifs[0])]["energy"] == pytest.approx(first[key_of(cifs[0])]["energy"])


@pytest.mark.parametrize("content", ["", "[]", "{", "\0"])
def test_a_damaged_job_is_one_line(cifs, job, tmp_path, content):
    (tmp_path / "job.json").write_text(content)
    with pytest.raises(UserError, match=r"job\.json is .*; delete the folder \S+ to relax again"):
        relax_all(cifs[:1], job, tmp_path)


def test_a_folder_is_of_one_job(cifs, job, tmp_path, m3gnet, monkeypatch):
    monkeypatch.setattr(runner, "_loaded", lambda *_: m3gnet)
    relax_all([], job, tmp_path)
    other = RelaxJob(model="chgnet", settings=SETTINGS)
    with pytest.raises(UserError, match="relaxations of another model; choose another --output"):
        relax_all(cifs, other, tmp_path)


def start(cifs, folder, weights, workers, tmp_path):
    (tmp_path / "cifs.json").write_text(json.dumps(cifs))
    arguments = [str(tmp_path / "cifs.json"), str(folder), str(weights), str(workers)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", CALL, *arguments], env=environment, cwd=ROOT, start_new_session=True)


def wait_for(folder, count, process):
    begin = time.monotonic()
    while len(read_journals(folder)) < count:
        assert process.poll() is None, "it ended too early"
        assert time.monotonic() - begin < 120, "nothing happens"
        time.sleep(0.02)


def children(pid):
    """Processes that relax: workers load PyTorch, and so are large."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and int(fields[21]) * 4096 > 2e8:
            found.append(int(path.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_killing_the_driver_and_a_worker_loses_and_repeats_nothing(cifs, weights, tmp_path):
    folder = tmp_path / "relaxations"
    folder.mkdir()
    driver = start(cifs, folder, weights, 1, tmp_path)
    wait_for(folder, 5, driver)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    before = read_journals(folder)
    assert 5 <= len(before) < len(cifs)

    driver = start(cifs, folder, weights, 2, tmp_path)
    wait_for(folder, len(before) + 3, driver)
    workers = children(driver.pid)
    assert workers
    os.kill(workers[0], signal.SIGKILL)
    assert driver.wait(timeout=240) == 0
    rows = lines(folder)
    assert {row["key"] for row in rows} == {key_of(cif) for cif in cifs}
    assert len(rows) == len(cifs)  # none twice
    assert {row["status"] for row in rows} == {"converged"}
    found = read_journals(folder)
    assert all(found[key] == row for key, row in before.items())


def test_crystals_that_kill_their_process_are_named(cifs, job, tmp_path, monkeypatch):
    """And cost nothing but themselves; many in a row are the machine's fault."""
    monkeypatch.setattr(runner, "_of_worker", killers.of_worker)
    # Workers of other tests do not find this one's function.
    monkeypatch.syspath_prepend(ROOT)
    get_reusable_executor().shutdown()
    some = [cif.replace("Cl", "Po") if i in (7, 8, 30) else cif for i, cif in enumerate(cifs)]
    assert sum("Po" in cif for cif in some) == 3
    found = relax_all(some, job, tmp_path / "some", workers=2)
    assert list(found) == [key_of(cif) for cif in some]
    for cif, row in zip(some, found.values(), strict=True):
        assert row["status"] == ("crashed" if "Po" in cif else "converged")
    killer = found[key_of(some[7])]
    assert killer["reason"] == "it killed its process"
    assert killer["energy"] is None
    with pytest.raises(UserError, match="each of 3 crystals in a row killed its process"):
        relax_all([cif.replace("Cl", "Po") for cif in cifs], job, tmp_path / "all", workers=2)


def test_ray(cifs, job, tmp_path):
    ray = pytest.importorskip("ray")
    try:
        found = relax_all(cifs[:3], job, tmp_path, ray_address="local")
        assert {row["status"] for row in found.values()} == {"converged"}
        assert len(lines(tmp_path)) == 3
    finally:
        ray.shutdown()
