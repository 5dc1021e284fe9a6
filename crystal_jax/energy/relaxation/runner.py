"""Relaxes many crystals on all cores or on a Ray cluster, and keeps every finished result.

Each process appends a result to its own JSONL log, one line per crystal, as soon as the crystal has finished. After an
interruption, the same call continues with the crystals that no log contains. Each worker loads the model once and runs
on one thread: on a CPU, several processes with small batches are faster than one with several threads. On accelerators
one process drives all devices.
"""

from __future__ import annotations

import collections
import functools
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from joblib.externals.loky import process_executor
from joblib.externals.loky.process_executor import TerminatedWorkerError
from tqdm import tqdm

from crystal_jax.allocator import keep_freed_memory
from crystal_jax.energy.model import Cell, EnergyModel, load_model, runs_on_accelerator
from crystal_jax.energy.relaxation.journal import claim, journal, key_of, read_journals
from crystal_jax.energy.relaxation.relax import relax
from crystal_jax.energy.relaxation.result import Relaxed, is_whole, row_of
from crystal_jax.energy.settings import RelaxJob
from crystal_jax.errors import UserError
from crystal_jax.storage.worker_pool import available_workers
from crystal_jax.structures import Entry, parse

_CHUNK = 64  # crystals per task of a worker, at least; enough that most of its batches are full
_MAX_CHUNK = 512  # at the end of a task, a few slow crystals take steps alone: long tasks lose less to this
_TASKS = 8  # per worker, so that all end at about the same time
_WORTH_A_PROCESS = 32  # minimum number of crystals per worker: each worker loads the model, which takes seconds
_MAX_DEATHS = 3  # crystals in a row that kill their process: the cause is then not the crystals


def relax_all(
    cifs: Sequence[str],
    job: RelaxJob,
    folder: Path,
    *,
    workers: int | None = None,
    ray_address: str | None = None,
    progress: bool = False,
) -> dict[str, dict[str, Any]]:
    """Relaxes each distinct CIF once and returns the log's row of each crystal by key; see `row_of`.

    If workers die without finishing a crystal, the remaining crystals are relaxed one at a time in a process of their
    own. A crystal that kills this process is recorded as `crashed`.

    Args:
        cifs: CIFs that can be parsed.
        job: model and settings.
        folder: folder of the logs; a folder of the same job is continued.
        workers: processes on this machine; by default one per core.
        ray_address: Ray cluster to use instead of this machine: "auto", or HOST:PORT.
        progress: whether to show a progress bar.

    Raises:
        UserError: the folder belongs to another job, the model cannot be loaded, or workers die repeatedly.
    """
    claim(folder, job)
    texts = {key_of(cif): cif for cif in cifs}
    died, before = False, -1
    with tqdm(total=len(texts), desc="relaxation", unit="crystal", disable=not progress) as bar:
        while True:
            rows = {key: row for key, row in read_journals(folder).items() if is_whole(row)}
            missing = [key for key in texts if key not in rows]
            bar.update(len(texts) - len(missing) - bar.n)
            if not missing:
                return {key: rows[key] for key in texts}
            # With one worker, crystals are relaxed in this process; one that may kill its process is not.
            alone = died and (len(rows) == before or _workers_for(missing, job, workers) == 1)
            before = len(rows)
            how = _one_by_one if alone else _relax_in_parallel
            try:
                for _ in how([texts[key] for key in missing], job, folder, workers, ray_address):
                    bar.update(1)
            except _WorkersDied:
                died = True


class _WorkersDied(Exception):  # noqa: N818 - not an error; the missing crystals are relaxed again
    """Signals that a process that relaxed crystals was killed."""


def _relax_in_parallel(
    cifs: Sequence[str], job: RelaxJob, folder: Path, workers: int | None, ray_address: str | None
) -> Iterator[None]:
    """Relaxes and writes crystals; yields once for each crystal that is written."""
    workers = _workers_for(cifs, job, workers)
    if ray_address is not None:
        yield from _on_ray(cifs, job, folder, ray_address)
    elif workers == 1:
        yield from _relax_and_write(cifs, job, folder)
    else:
        with process_executor.ProcessPoolExecutor(workers, initializer=_keep_worker) as pool:
            tasks = [pool.submit(_of_worker, chunk, job, folder) for chunk in _chunks(cifs, workers)]
            try:
                for task in as_completed(tasks):
                    yield from [None] * task.result()
            except TerminatedWorkerError as error:
                raise _WorkersDied from error


def _keep_worker() -> None:
    """Turns off the check of a worker's memory: it keeps freed memory on purpose (`allocator`), and a new one would
    load model and programs again.
    """
    process_executor._MAX_MEMORY_LEAK_SIZE = math.inf


def _workers_for(some: Sequence[str], job: RelaxJob, workers: int | None) -> int:
    if workers is None:
        workers = 1 if runs_on_accelerator(job.model) else available_workers()
    return max(1, min(workers, -(-len(some) // _WORTH_A_PROCESS)))


def _chunks(cifs: Sequence[str], workers: int) -> list[Sequence[str]]:
    size = min(max(len(cifs) // (_TASKS * workers), _CHUNK), _MAX_CHUNK)
    size = max(1, min(size, -(-len(cifs) // workers)))
    return [cifs[begin : begin + size] for begin in range(0, len(cifs), size)]


def _one_by_one(
    cifs: Sequence[str], job: RelaxJob, folder: Path, workers: int | None, ray_address: str | None
) -> Iterator[None]:
    """Relaxes crystals one at a time until one kills its process; yields once for each crystal that is written.

    Raises:
        UserError: several crystals in a row killed their process.
    """
    deaths, waiting = 0, list(cifs)
    while waiting:
        with ProcessPoolExecutor(1, get_context("spawn")) as alone:
            try:
                while waiting:
                    if ray_address is None:
                        alone.submit(_of_worker, waiting[:1], job, folder).result()
                    else:
                        collections.deque(_on_ray(waiting[:1], job, folder, ray_address), maxlen=0)
                    del waiting[0]
                    yield
                    if deaths:
                        return  # the culprit is found; the rest can run in parallel
            except (_WorkersDied, BrokenProcessPool):
                deaths += 1
        if waiting and deaths:
            if deaths == _MAX_DEATHS:
                raise UserError(
                    f"each of {_MAX_DEATHS} crystals in a row killed its process; memory is probably too small: "
                    "lower --workers or --batch_atoms"
                )
            with journal(folder) as write:
                write(_crashed(waiting.pop(0)))
            yield


def _crashed(cif: str) -> dict[str, Any]:
    structure = parse(Entry("", cif)).structure
    assert structure is not None
    return row_of(Relaxed(key_of(cif), "crashed", "it killed its process", None, None, 0, 0.0, Cell.of(structure)))


def _of_worker(cifs: Sequence[str], job: RelaxJob, folder: Path) -> int:
    """Relaxes a chunk in a worker process of this machine; returns the number of rows written."""
    _use_one_thread()
    return sum(1 for _ in _relax_and_write(cifs, job, folder))


def _relax_and_write(cifs: Sequence[str], job: RelaxJob, folder: Path) -> Iterator[None]:
    with journal(folder) as write:
        for row in relax_rows(cifs, job):
            write(row)
            yield


def relax_rows(cifs: Sequence[str], job: RelaxJob) -> Iterator[dict[str, Any]]:
    """Relaxes crystals in this process and yields each row as it finishes."""
    keep_freed_memory()
    model = _loaded(job.model, job.weights)
    parsed = ((cif, parse(Entry("", cif)).structure) for cif in cifs)
    cells = ((key_of(cif), Cell.of(structure)) for cif, structure in parsed if structure is not None)
    return (row_of(result) for result in relax(model, cells, job.settings))


@functools.cache
def _use_one_thread() -> None:
    """Limits this process to one thread, before JAX or PyTorch start theirs."""
    os.environ["NPROC"] = "1"  # read by XLA's CPU client
    os.environ["OMP_NUM_THREADS"] = "1"  # read by PyTorch


@functools.cache
def _loaded(name: str, weights: str) -> EnergyModel:
    return load_model(name, weights=Path(weights) if weights else None)


def _on_ray(cifs: Sequence[str], job: RelaxJob, folder: Path, address: str) -> Iterator[None]:
    """Relaxes on a Ray cluster; rows arrive one by one, and this process writes them."""
    from crystal_jax.energy.relaxation.ray_backend import stream

    with journal(folder) as write:
        for row in stream(lambda workers: _chunks(cifs, workers), job, address):
            if row is None:
                raise _WorkersDied
            write(row)
            yield
