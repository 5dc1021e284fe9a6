"""Relaxes many crystals on all cores or on a Ray cluster, and keeps every finished result.

Each process appends a result to its own JSONL log, one line per crystal, as soon as the crystal has finished. After an
interruption, the same call continues with the crystals that no log contains. Each worker loads the model once and runs
on one thread.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any, get_args

import joblib
from joblib.externals.loky.process_executor import TerminatedWorkerError
from tqdm import tqdm

from crystal_jax.energy.model import Cell, EnergyModel, load_model
from crystal_jax.energy.relaxation.relax import Relaxed, Status, relax
from crystal_jax.energy.settings import RelaxSettings
from crystal_jax.errors import UserError
from crystal_jax.json_files import finite, read_bytes, read_object
from crystal_jax.storage.files import write_text
from crystal_jax.storage.worker_pool import available_workers
from crystal_jax.structures import Entry, parse
from crystal_jax.suppress_warnings import quiet

_CHUNK = 64  # crystals per task of a worker; enough that most of its batches are full
_WORTH_A_PROCESS = 16  # minimum number of crystals per worker: each worker loads the model, which takes seconds
_MAX_DEATHS = 3  # crystals in a row that kill their process: the cause is then not the crystals


@dataclasses.dataclass(frozen=True, kw_only=True)
class RelaxJob:
    """Settings that decide the results; a different job needs a different folder.

    Attributes:
        model: a name for `load_model`.
        weights: folder of the model's weights, or "".
        settings: stopping criteria and batch size.
    """

    model: str
    weights: str = ""
    settings: RelaxSettings = dataclasses.field(default_factory=RelaxSettings)


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
    _claim(folder, job)
    texts = {key_of(cif): cif for cif in cifs}
    died, before = False, -1
    with tqdm(total=len(texts), desc="relaxation", unit="crystal", disable=not progress) as bar:
        while True:
            rows = {key: row for key, row in read_journals(folder).items() if _is_whole(row)}
            missing = [key for key in texts if key not in rows]
            bar.update(len(texts) - len(missing) - bar.n)
            if not missing:
                return {key: rows[key] for key in texts}
            # With one worker, crystals are relaxed in this process; one that may kill its process is not.
            alone = died and (len(rows) == before or _workers_for(missing, workers) == 1)
            before = len(rows)
            how = _one_by_one if alone else _relax_in_parallel
            try:
                for _ in how([texts[key] for key in missing], job, folder, workers, ray_address):
                    bar.update(1)
            except _WorkersDied:
                died = True


class _WorkersDied(Exception):  # noqa: N818 - not an error; the missing crystals are relaxed again
    """Signals that a process that relaxed crystals was killed."""


def key_of(cif: str) -> str:
    """Returns the key of a crystal in the logs: the SHA-256 of its CIF."""
    return hashlib.sha256(cif.encode()).hexdigest()


def read_journals(folder: Path) -> dict[str, dict[str, Any]]:
    """Reads all rows by key. Truncated or damaged lines are skipped; their crystals are relaxed again."""
    rows: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for line in read_bytes(path).splitlines():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            key = row.get("key") if isinstance(row, dict) else None
            if isinstance(key, str) and isinstance(row.get("relaxed_cif"), str | None):
                rows[key] = row
    return rows


def _is_whole(row: Mapping[str, Any]) -> bool:
    """Whether a row has all fields that `row_of` writes."""
    energy = row.get("energy")
    return (
        row.get("status") in get_args(Status)
        and isinstance(row.get("reason"), str)
        and isinstance(row.get("steps"), int)
        and (energy is None or finite(energy) is not None)
        and (energy is None or isinstance(row.get("relaxed_cif"), str))
        and isinstance(row.get("num_atoms"), int)
    )


@quiet()
def row_of(result: Relaxed) -> dict[str, Any]:
    """Returns a log row: the fields of the result, energies of the cell in eV, and the relaxed crystal as a CIF."""
    cell = result.cell.to_structure().to(fmt="cif") if result.succeeded else None
    fields = {field.name: getattr(result, field.name) for field in dataclasses.fields(result) if field.name != "cell"}
    return fields | {"num_atoms": len(result.cell.numbers), "relaxed_cif": cell}


def _claim(folder: Path, job: RelaxJob) -> None:
    path = folder / "job.json"
    asked = dataclasses.asdict(job) | {"weights": ""}  # the same weights may be in another folder
    if path.exists():
        found = read_object(path, advice=f"delete the folder {folder} to relax again")
        if changed := [name for name in asked if asked[name] != found.get(name)]:
            raise UserError(
                f"{folder} holds relaxations of another {', '.join(changed)}; choose another --output, or delete it"
            )
        return
    write_text(path, json.dumps(asked, indent=2) + "\n")


def _relax_in_parallel(
    cifs: Sequence[str], job: RelaxJob, folder: Path, workers: int | None, ray_address: str | None
) -> Iterator[None]:
    """Relaxes and writes crystals; yields once for each crystal that is written."""
    workers = _workers_for(cifs, workers)
    if ray_address is not None:
        yield from _on_ray(cifs, job, folder, ray_address)
    elif workers == 1:
        yield from _relax_and_write(cifs, job, folder)
    else:
        run = joblib.Parallel(n_jobs=workers, return_as="generator_unordered")
        try:
            for count in run(joblib.delayed(_of_worker)(chunk, job, folder) for chunk in _chunks(cifs, workers)):
                yield from [None] * count
        except TerminatedWorkerError as error:
            raise _WorkersDied from error


def _workers_for(some: Sequence[str], workers: int | None) -> int:
    return max(1, min(available_workers() if workers is None else workers, -(-len(some) // _WORTH_A_PROCESS)))


def _chunks(cifs: Sequence[str], workers: int) -> list[Sequence[str]]:
    size = max(1, min(_CHUNK, -(-len(cifs) // workers)))
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
            with _journal(folder) as write:
                write(_crashed(waiting.pop(0)))
            yield


def _crashed(cif: str) -> dict[str, Any]:
    structure = parse(Entry("", cif)).structure
    assert structure is not None
    return row_of(Relaxed(key_of(cif), "crashed", "it killed its process", None, None, 0, 0.0, Cell.of(structure)))


def _of_worker(cifs: Sequence[str], job: RelaxJob, folder: Path) -> int:
    """Relaxes a chunk in a worker process of this machine; returns the number of rows written."""
    return sum(1 for _ in _relax_and_write(cifs, job, folder))


def _relax_and_write(cifs: Sequence[str], job: RelaxJob, folder: Path) -> Iterator[None]:
    with _journal(folder) as write:
        for row in relax_rows(cifs, job):
            write(row)
            yield


@contextlib.contextmanager
def _journal(folder: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Opens this process's own log file and yields a function that writes a row at once."""
    path = folder / f"{socket.gethostname()}-{os.getpid()}.jsonl"
    with path.open("a", encoding="utf-8") as file:
        if path.stat().st_size:
            file.write("\n")  # ends a partial line of an earlier process with the same id

        def write(row: Mapping[str, Any]) -> None:
            file.write(json.dumps(row) + "\n")
            file.flush()

        yield write


def relax_rows(cifs: Sequence[str], job: RelaxJob) -> Iterator[dict[str, Any]]:
    """Relaxes crystals in this process, on one thread, and yields each row as it finishes."""
    model = _loaded(job.model, job.weights)
    cells = []
    for cif in cifs:
        structure = parse(Entry("", cif)).structure
        if structure is not None:
            cells.append((key_of(cif), Cell.of(structure)))
    return (row_of(result) for result in relax(model, cells, job.settings))


@functools.cache
def _loaded(name: str, weights: str) -> EnergyModel:
    model = load_model(name, weights=Path(weights) if weights else None)
    import torch

    torch.set_num_threads(1)
    return model


def _on_ray(cifs: Sequence[str], job: RelaxJob, folder: Path, address: str) -> Iterator[None]:
    """Relaxes on a Ray cluster; rows arrive one by one, and this process writes them."""
    from crystal_jax.energy.relaxation.ray_backend import stream

    with _journal(folder) as write:
        for row in stream(lambda workers: _chunks(cifs, workers), job, address):
            if row is None:
                raise _WorkersDied
            write(row)
            yield
