"""Relaxes many crystals on all cores or on a Ray cluster, and forgets nothing that is finished.

Every crystal that ends is written at once, as one line, to a journal of the process that wrote it. Whatever is killed,
the same call goes on with those that no journal has. Each worker loads the model once and runs on one thread.
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
from crystal_jax.energy.relax import Relaxed, RelaxSettings, Status, relax
from crystal_jax.errors import UserError
from crystal_jax.json_files import finite, read_bytes, read_object
from crystal_jax.storage.files import write_text
from crystal_jax.storage.worker_pool import available_workers
from crystal_jax.structures import Entry, parse
from crystal_jax.suppress_warnings import quiet

_CHUNK = 64  # crystals that a worker takes at a time: some batches full, so that few batches are not
_WORTH_A_PROCESS = 16  # crystals; loading the model takes a worker some seconds
_FRUITLESS = 3  # crystals that may kill their process one after the other; with more, it is not the crystals


@dataclasses.dataclass(frozen=True, kw_only=True)
class RelaxJob:
    """What is done with each crystal; another one needs another folder.

    Attributes:
        model: a name for `load_model`.
        weights: folder of the model's weights, or "".
        settings: when a relaxation ends.
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
    """Relaxes crystals, each distinct CIF once, and returns the journal's row of each: see `row_of`.

    Args:
        cifs: readable ones.
        job: what to do.
        folder: of the journals; one of the same job is gone on with.
        workers: processes on this machine; by default one for each core.
        ray_address: of a Ray cluster to be used instead: "auto", or HOST:PORT.
        progress: whether to show a progress bar.

    Raises:
        UserError: the folder is of another job, the model cannot be loaded, or workers die again and again.

    A crystal that kills its process is found out, since it does so alone, too, and written down as crashed.
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
            # Few are relaxed in this process, which must not die of them.
            alone = died and (len(rows) == before or _workers_for(missing, workers) == 1)
            before = len(rows)
            how = _one_by_one if alone else _finished
            try:
                for _ in how([texts[key] for key in missing], job, folder, workers, ray_address):
                    bar.update(1)
            except _WorkersDied:
                died = True


class _WorkersDied(Exception):  # noqa: N818 - what is missing is done again
    """A process that relaxed crystals was killed."""


def key_of(cif: str) -> str:
    """What a crystal is known by in the journals."""
    return hashlib.sha256(cif.encode()).hexdigest()


def read_journals(folder: Path) -> dict[str, dict[str, Any]]:
    """All rows by their keys; a line that was cut off or damaged is left out: its crystal is relaxed again."""
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
    """Whether a row has what `row_of` writes."""
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
    """A line of the journal: the result's fields, energies in eV of the cell, and the relaxed crystal as a CIF."""
    cell = result.cell.to_structure().to(fmt="cif") if result.succeeded else None
    fields = {field.name: getattr(result, field.name) for field in dataclasses.fields(result) if field.name != "cell"}
    return fields | {"num_atoms": len(result.cell.numbers), "relaxed_cif": cell}


def _claim(folder: Path, job: RelaxJob) -> None:
    path = folder / "job.json"
    asked = dataclasses.asdict(job) | {"weights": ""}  # the same weights may lie elsewhere
    if path.exists():
        found = read_object(path, advice=f"delete the folder {folder} to relax again")
        if changed := [name for name in asked if asked[name] != found.get(name)]:
            raise UserError(
                f"{folder} holds relaxations of another {', '.join(changed)}; choose another --output, or delete it"
            )
        return
    write_text(path, json.dumps(asked, indent=2) + "\n")


def _finished(
    cifs: Sequence[str], job: RelaxJob, folder: Path, workers: int | None, ray_address: str | None
) -> Iterator[None]:
    """Relaxes and writes; yields once for each crystal that is written."""
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
    """Relaxes each alone, until it has found one that kills its process; yields when one is written.

    Raises:
        UserError: several died, one after the other.
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
                        return  # the others can go on side by side
            except (_WorkersDied, BrokenProcessPool):
                deaths += 1
        if waiting and deaths:
            if deaths == _FRUITLESS:
                raise UserError(
                    f"{_FRUITLESS} crystals one after the other killed the processes that relaxed them alone; is there "
                    "memory enough? lower --workers or --batch_atoms"
                )
            with _journal(folder) as write:
                write(_crashed(waiting.pop(0)))
            yield


def _crashed(cif: str) -> dict[str, Any]:
    structure = parse(Entry("", cif)).structure
    assert structure is not None
    return row_of(Relaxed(key_of(cif), "crashed", "it killed its process", None, None, 0, 0.0, Cell.of(structure)))


def _of_worker(cifs: Sequence[str], job: RelaxJob, folder: Path) -> int:
    """What a process of this machine does with a chunk; returns how many it has written."""
    return sum(1 for _ in _relax_and_write(cifs, job, folder))


def _relax_and_write(cifs: Sequence[str], job: RelaxJob, folder: Path) -> Iterator[None]:
    with _journal(folder) as write:
        for row in relax_rows(cifs, job):
            write(row)
            yield


@contextlib.contextmanager
def _journal(folder: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """What writes a row at once, to this process's own file."""
    path = folder / f"{socket.gethostname()}-{os.getpid()}.jsonl"
    with path.open("a", encoding="utf-8") as file:
        if path.stat().st_size:
            file.write("\n")  # ends what a process of the same number may have left half written

        def write(row: Mapping[str, Any]) -> None:
            file.write(json.dumps(row) + "\n")
            file.flush()

        yield write


def relax_rows(cifs: Sequence[str], job: RelaxJob) -> Iterator[dict[str, Any]]:
    """Relaxes crystals in this process, on one thread, and yields their rows as they end."""
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
    """The same on a cluster: rows come back one by one, and this process writes them."""
    from crystal_jax.energy.ray_backend import stream

    with _journal(folder) as write:
        for row in stream(lambda workers: _chunks(cifs, workers), job, address):
            if row is None:
                raise _WorkersDied
            write(row)
            yield
