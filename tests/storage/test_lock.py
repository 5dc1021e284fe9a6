import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from crystal_jax.errors import UserError
from crystal_jax.storage.files import LOCK
from crystal_jax.storage.lock import lock, release

HOLDER = """
import sys, time
from pathlib import Path
from crystal_jax.storage.lock import lock
lock(Path(sys.argv[1]))
print("locked", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of a folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_refused_and_told_who_it_is(holder, tmp_path):
    with pytest.raises(UserError, match=rf"is being written by process {holder.pid} on {socket.gethostname()}; wait"):
        lock(tmp_path)
    assert (tmp_path / LOCK).exists()


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_of_a_dead_process_is_taken_over(holder, tmp_path, by):
    holder.send_signal(by)
    holder.wait()
    lock(tmp_path)
    assert json.loads((tmp_path / LOCK).read_text()) == {"host": socket.gethostname(), "process": os.getpid()}
    release(tmp_path)
    assert not (tmp_path / LOCK).exists()


def test_within_a_process_a_lock_is_taken_again_and_released_once(tmp_path):
    lock(tmp_path)
    lock(tmp_path)
    release(tmp_path)
    release(tmp_path)
    lock(tmp_path)
    release(tmp_path)


@pytest.mark.parametrize(("age", "taken"), [(5, False), (3600, True)])
def test_the_lock_of_another_host_counts_while_it_is_renewed(tmp_path, age, taken):
    (tmp_path / LOCK).write_text(json.dumps({"host": "elsewhere", "process": 7}))
    os.utime(tmp_path / LOCK, (time.time() - age,) * 2)
    if taken:
        lock(tmp_path)
        release(tmp_path)
    else:
        with pytest.raises(UserError, match=r"process 7 on elsewhere.*If that process is gone, delete .*\.lock"):
            lock(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "\0\0"])
def test_a_damaged_lock_file_does_not_block(tmp_path, content):
    (tmp_path / LOCK).write_text(content)
    lock(tmp_path)
    release(tmp_path)
