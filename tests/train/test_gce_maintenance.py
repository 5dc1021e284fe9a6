"""What Google's metadata server says, from a real server on this machine."""

import socket
import threading
import time

import pytest

from crystal_jax.train import gce_maintenance
from crystal_jax.train.gce_maintenance import ENDS, MaintenanceWatcher
from crystal_jax.train.preemption import Preemption
from tests.train.metadata_server import MetadataServer, drop, garbage, other_page, unavailable

FAILURES = [drop, garbage, other_page, unavailable]


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    monkeypatch.setattr(gce_maintenance, "_PAUSE_SECONDS", 0.01)


@pytest.fixture
def server(monkeypatch):
    with MetadataServer() as server:
        monkeypatch.setenv("GCE_METADATA_HOST", server.host)
        yield server


def until_nobody_listens():
    deadline = time.monotonic() + 60
    while any(thread.name.startswith("metadata ") for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("key", sorted(ENDS))
def test_what_ends_the_machine_is_told_once(server, capsys, key):
    told = threading.Semaphore(0)
    with MaintenanceWatcher(told.release):
        server.until_somebody_waits()
        assert not told.acquire(blocking=False)
        server.announce(key, ENDS[key])
        assert told.acquire(timeout=60)
        server.announce(key, "NONE")
        server.announce(key, ENDS[key])
        assert not told.acquire(timeout=0.2)
    assert capsys.readouterr().err.splitlines() == [
        f"Google's metadata server: {key} is {ENDS[key]}; saving and leaving"
    ]


def test_a_machine_that_moves_stays(server):
    told = threading.Event()
    with MaintenanceWatcher(told.set):
        server.until_somebody_waits()
        seen = len(server.requests)
        server.announce("maintenance-event", "MIGRATE_ON_HOST_MAINTENANCE")
        server.until(lambda: len(server.requests) > seen)
    assert not told.is_set()


def test_what_was_known_before_the_run_does_not_end_it(server, capsys):
    """Or a launcher that starts it again on a machine that has an hour left would do so for an hour."""
    told = threading.Event()
    server.announce("maintenance-event", ENDS["maintenance-event"])
    with MaintenanceWatcher(told.set):
        server.until_somebody_waits()
        assert not told.is_set()
        assert "since before this run" in capsys.readouterr().err
        server.announce("maintenance-event", "NONE")
        seen = len(server.requests)
        server.until(lambda: len(server.requests) > seen)
        server.announce("maintenance-event", ENDS["maintenance-event"])  # another one
        assert told.wait(60)


@pytest.mark.parametrize("fails", FAILURES)
def test_a_server_that_fails_for_a_while_is_asked_again(server, fails):
    told = threading.Event()
    with MaintenanceWatcher(told.set):
        server.until_somebody_waits()
        server.fails = fails
        seen = len(server.requests)
        server.announce("maintenance-event", "NONE")  # ends the waiting; the next requests fail
        server.announce("preempted", "FALSE")
        server.until(lambda: len(server.requests) > seen + 6)
        assert not told.is_set()
        server.fails = None
        server.announce("preempted", ENDS["preempted"])
        assert told.wait(60)


@pytest.mark.parametrize("fails", FAILURES)
def test_what_is_not_googles_server_is_left_alone(server, capsys, fails):
    server.fails = fails
    told = threading.Event()
    with MaintenanceWatcher(told.set):
        until_nobody_listens()
    assert not told.is_set()
    assert len(server.requests) <= 2 * 3
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("host", ["localhost:1", "localhost:port", "http://metadata", "..", "no such host"])
def test_where_nobody_answers_nothing_happens(monkeypatch, capsys, host):
    monkeypatch.setenv("GCE_METADATA_HOST", host)
    with MaintenanceWatcher(lambda: pytest.fail("told")):
        until_nobody_listens()
    assert capsys.readouterr().err == ""


def test_a_server_that_says_nothing_delays_nothing(monkeypatch):
    with socket.create_server(("localhost", 0)) as silent:
        monkeypatch.setenv("GCE_METADATA_HOST", f"localhost:{silent.getsockname()[1]}")
        begin = time.monotonic()
        with Preemption() as preemption:
            assert not preemption.reached(1)
        assert time.monotonic() - begin < gce_maintenance._ANSWER_SECONDS / 2
    until_nobody_listens()


def test_after_the_run_nothing_is_told(server):
    told = threading.Event()
    with MaintenanceWatcher(told.set):
        server.until_somebody_waits()
    for key, end in ENDS.items():
        server.announce(key, end)
    until_nobody_listens()
    assert not told.is_set()


@pytest.mark.parametrize("in_main_thread", [True, False])
def test_one_process_is_asked_to_leave(server, in_main_thread):
    reached = []

    def run():
        with Preemption() as preemption:
            server.until_somebody_waits()
            reached.append(preemption.reached(1))
            server.announce("preempted", "TRUE")
            deadline = time.monotonic() + 60
            while not preemption.reached(2) and time.monotonic() < deadline:
                time.sleep(0.001)
            reached.append(preemption.reached(2))

    if in_main_thread:
        run()
    else:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert reached == [False, True]
