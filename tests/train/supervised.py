"""Training in processes of their own that may be killed, started again and again by a supervisor.

Starting Python and importing JAX is most of the life of such a process, so a server that has imported everything forks
them. They share the compilation cache of all tests (tests/conftest.py).
"""

import importlib.util
import json
import multiprocessing
import os
import random
import signal
import socket
import sys
import time
from pathlib import Path

ROOT = str(Path(__file__).parents[2])
if ROOT not in sys.path:  # the server finds this module by it
    sys.path.insert(0, ROOT)

# None of these touches a device when it is imported. The server passes over a module that it does not find.
_PRELOADED = (
    "jax.experimental.multihost_utils",
    "crystal_jax.processes",
    "crystal_jax.sample.sample_run",
    "crystal_jax.train.training_run",
)
assert all(importlib.util.find_spec(name) for name in _PRELOADED)
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(list(_PRELOADED))
SAVING = "*.orbax-checkpoint-tmp*"  # a checkpoint that is being written
PREEMPTED = 75


def enter(workdir, process, num_processes, devices, port):
    """Makes a new process one of a job, with a log beside the workdir."""
    log = os.open(f"{workdir}.process{process}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    # No device has been touched yet, so this still counts.
    os.environ["XLA_FLAGS"] = (
        f"--xla_force_host_platform_device_count={devices // num_processes} --xla_backend_optimization_level=0"
    )
    from crystal_jax.processes import join

    if num_processes > 1:
        join(f"localhost:{port}", num_processes, process)


def _train(config, workdir, process, num_processes, *where, stop_after=None, metadata_host=None):
    """One process of a run; ends with the exit status of the command line.

    Of several, the last one is on a machine that has a metadata server.
    """
    enter(workdir, process, num_processes, *where)
    if metadata_host and process == num_processes - 1:
        os.environ["GCE_METADATA_HOST"] = metadata_host
    from crystal_jax.errors import Preempted
    from crystal_jax.train.run import train

    try:
        train(config, workdir=Path(workdir), stop_after=stop_after)
    except Preempted as stop:
        print(stop)
        sys.exit(PREEMPTED)


class Group:
    """The processes of one job; with `with`, none of them outlives the block.

    `work` is called in each with the configuration, the workdir, what `enter` wants to know, and the further options.
    """

    def __init__(self, config, workdir, *, processes=1, devices=4, work=_train, **options):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        places = [(config, str(workdir), i, processes, devices, port) for i in range(processes)]
        self.processes = [_CONTEXT.Process(target=work, args=place, kwargs=options) for place in places]

    def __enter__(self):
        for process in self.processes:
            process.start()
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.join()

    def alive(self):
        return all(process.is_alive() for process in self.processes)

    def signal(self, which, number):
        os.kill(self.processes[which].pid, number)

    def wait(self, timeout=300):
        """Exit statuses; negative ones are signals."""
        deadline = time.monotonic() + timeout
        for process in self.processes:
            process.join(max(deadline - time.monotonic(), 0))
        return [process.exitcode for process in self.processes]


def run(config, workdir, **kwargs):
    """From start to end, undisturbed."""
    with Group(config, workdir, **kwargs) as group:
        assert set(group.wait()) == {0}, Path(f"{workdir}.process0.log").read_text()[-2000:]


def curve(workdir, key="loss"):
    """The values of one metric by step."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return {row["step"]: row[key] for row in rows if key in row}


def saved(workdir):
    """Steps of the finished checkpoints."""
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdecimal())


def run_and_kill(config, workdir, *, kills, seed, **kwargs):
    """Kills the run `kills` times, half of them at a random step and half while it saves, then lets it finish.

    Returns:
        How many kills left a half-written checkpoint behind.
    """
    rng, mid_save = random.Random(seed), 0
    checkpoints = workdir / "checkpoints"
    for kill in range(kills):
        before = saved(workdir)
        target = (before or [0])[-1] + rng.randint(1, config["train"]["save_every"] + 1)
        with Group(config, workdir, **kwargs) as group:
            deadline = time.monotonic() + 300
            while time.monotonic() < deadline:
                assert group.alive(), Path(f"{workdir}.process0.log").read_text()[-2000:]
                if kill % 2 and any(checkpoints.glob(SAVING)) and saved(workdir) == before:
                    break
                if not kill % 2 and max(curve(workdir), default=0) >= target:
                    break
                time.sleep(0.001)
            else:
                raise AssertionError(f"nothing to kill at in five minutes: {workdir}")
            group.signal(rng.randrange(len(group.processes)), signal.SIGKILL)
        mid_save += any(checkpoints.glob(SAVING))
    run(config, workdir, **kwargs)
    return mid_save
