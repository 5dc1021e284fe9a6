"""Runs relaxations on a Ray cluster whose machines have this package; the calling process writes the results."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from crystal_jax.errors import UserError

if TYPE_CHECKING:
    from crystal_jax.energy.settings import RelaxJob


def stream(
    chunks: Callable[[int], list[Sequence[str]]], job: RelaxJob, address: str
) -> Iterator[dict[str, Any] | None]:
    """Yields a row for each crystal as it finishes, from all workers. Yields None at the end if a worker was lost.

    Args:
        chunks: function from the number of the cluster's cores to chunks of the CIFs.
        job: the relaxation job.
        address: "auto", HOST:PORT, or "local" to start a cluster on this machine.

    Raises:
        UserError: Ray is not installed, there is no such cluster, or the model cannot be loaded on it.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise UserError("--ray_address needs Ray: pip install 'crystal-jax[ray]'") from error
    if not ray.is_initialized():
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"no Ray cluster at {address!r} ({reason}); start one with 'ray start --head'") from error
    work = ray.remote(num_cpus=1, max_retries=0)(_work)
    cores = int(ray.cluster_resources().get("CPU", 1))
    running: list[Any] = [work.remote(chunk, job) for chunk in chunks(cores)]
    lost = False
    while running:
        (ready, *_), running = ray.wait(running, num_returns=1, fetch_local=False)
        streamed: Any = ready
        try:
            row: Any = ray.get(next(streamed))
            yield row
            running.append(ready)
        except StopIteration:
            continue
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            raise
        except ray.exceptions.RayError:  # the worker's process or machine is gone
            lost = True
    if lost:
        yield None


def _work(cifs: Sequence[str], job: RelaxJob) -> Iterator[dict[str, Any]]:
    """Relaxes a chunk on a worker."""
    from crystal_jax.energy.relaxation.runner import relax_rows

    yield from relax_rows(cifs, job)
