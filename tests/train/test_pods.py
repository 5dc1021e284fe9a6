"""Runs of several processes, killed at random: what a pod does to a run, on this machine."""

import shutil
import signal
import time

import numpy as np
import pytest

from tests.experiments import training_config
from tests.train.metadata_server import MetadataServer, drop_what_waits
from tests.train.supervised import PREEMPTED, Group, curve, run, run_and_kill, saved

STEPS = 64


@pytest.fixture(scope="module")
def config(dataset):
    # Two streams, so that two processes have one each; small, so that a step takes milliseconds.
    return training_config(
        str(dataset),
        model={"num_layers": 1, "vocab_size": 1084},  # divides over two
        task={"infill": 0.0, "conditions": False},
        data={"seq_len": 32, "batch_size": 4, "shards": 2},
        train={"num_steps": STEPS, "eval_every": 8, "save_every": 4, "max_to_keep": 2},
        guard={"window": 8},
    )


@pytest.fixture(scope="module")
def alone(config, tmp_path_factory):
    """The workdir of an undisturbed run of one process with four devices."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    run(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def pair(config, tmp_path_factory):
    """The same of two processes with two devices each."""
    workdir = tmp_path_factory.mktemp("pair") / "run"
    run(config, workdir, processes=2)
    return workdir


def values(workdir, key="loss"):
    found = curve(workdir, key)
    return [found[step] for step in sorted(found)]


def test_the_number_of_processes_does_not_change_the_losses(alone, pair, config, tmp_path):
    run(config, tmp_path / "four", processes=4, stop_after=8)
    assert len(values(alone)) == STEPS
    for key in ("loss", "val_loss", "val_loss_coordinate"):
        np.testing.assert_allclose(values(pair, key), values(alone, key), rtol=1e-4)
        four = values(tmp_path / "four", key)
        np.testing.assert_allclose(four, values(alone, key)[: len(four)], rtol=1e-5)
    assert len(values(tmp_path / "four")) == 8


def test_killed_fourteen_times_alone(alone, config, tmp_path):
    mid_save = run_and_kill(config, tmp_path / "run", kills=14, seed=0)
    assert mid_save >= 4
    assert curve(tmp_path / "run") == curve(alone)  # to the bit
    assert curve(tmp_path / "run", "val_loss") == curve(alone, "val_loss")


def test_killed_eight_times_as_a_pair(pair, config, tmp_path):
    """Any one of the two dies; a launcher then takes down the other."""
    mid_save = run_and_kill(config, tmp_path / "run", kills=8, seed=1, processes=2)
    assert mid_save >= 2
    assert curve(tmp_path / "run") == curve(pair)
    assert curve(tmp_path / "run", "val_loss") == curve(pair, "val_loss")


@pytest.mark.parametrize(
    ("begun", "processes", "mesh"), [("pair", 1, (1, 2, 2)), ("alone", 2, (4, 1, 1))], ids=["two-to-one", "one-to-two"]
)
def test_a_run_goes_on_elsewhere(request, config, tmp_path, begun, processes, mesh):
    """From a checkpoint, with another number of processes and on another mesh."""
    source, workdir = request.getfixturevalue(begun), tmp_path / "run"
    shutil.copytree(source, workdir)
    shutil.rmtree(workdir / f"checkpoints/{STEPS}")
    start = saved(workdir)[-1]
    elsewhere = {**config, "mesh": dict(zip(("data", "fsdp", "tensor"), mesh, strict=True))}
    run(elsewhere, workdir, processes=processes)
    assert start == STEPS - config["train"]["save_every"]
    assert saved(workdir)[-1] == STEPS  # which was deleted, so it was computed anew
    np.testing.assert_allclose(values(workdir), values(source), rtol=1e-5)


@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_saves_at_once_and_says_so(alone, pair, config, tmp_path, processes):
    workdir = tmp_path / "run"
    rarely = {**config, "train": {**config["train"], "save_every": STEPS}}
    with Group(rarely, workdir, processes=processes) as group:
        while max(curve(workdir), default=0) < 3:
            assert group.alive()
            time.sleep(0.001)
        group.signal(processes - 1, signal.SIGTERM)  # one of them is enough
        assert group.wait() == [PREEMPTED] * processes
    (step,) = saved(workdir)
    assert 3 <= step < STEPS
    assert max(curve(workdir)) == step
    run(rarely, workdir, processes=processes)
    assert curve(workdir) == curve(pair if processes == 2 else alone)


@pytest.mark.parametrize("processes", [1, 2])
def test_googles_announcement_is_as_good_as_sigterm(alone, pair, config, tmp_path, processes):
    workdir = tmp_path / "run"
    rarely = {**config, "train": {**config["train"], "save_every": STEPS}}
    with (
        MetadataServer() as server,
        Group(rarely, workdir, processes=processes, metadata_host=server.host) as group,
    ):
        while max(curve(workdir), default=0) < 3:
            assert group.alive()
            time.sleep(0.001)
        server.until_somebody_waits()
        server.announce("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE")
        assert group.wait() == [PREEMPTED] * processes
        (step,) = saved(workdir)
        assert 3 <= step < STEPS
        assert max(curve(workdir)) == step
        # The machine is still there, and still to be stopped: the same command goes on to the end.
        run(rarely, workdir, processes=processes, metadata_host=server.host)
    assert curve(workdir) == curve(pair if processes == 2 else alone)


def test_a_metadata_server_that_fails_disturbs_nothing(alone, config, tmp_path):
    with MetadataServer(fails=drop_what_waits) as server:
        run(config, tmp_path / "run", metadata_host=server.host)
        assert ("preempted", True) in server.requests
    assert curve(tmp_path / "run") == curve(alone)
