"""Relaxations on a Ray cluster whose machines have this package; the calling process writes what comes back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from crystal_jax.errors import UserError

if TYPE_CHECKING:
    from crystal_jax.energy.runner import RelaxJob


def stream(
    chunks: Callable[[int], list[Sequence[str]]], job: RelaxJob, address: str
) -> Iterator[dict[str, Any] | None]:
    """Yields rows as crystals end, from all workers; at the end None, if a worker was lost.

    Args:
        chunks: shares of the CIFs, given the number of the cluster's cores.
        job: what to do with them.
        address: "auto", HOST:PORT, or "local" for a cluster in this machine that is begun here.

    Raises:
        UserError: Ray is not installed, or there is no such cluster, or the model cannot be loaded there.
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
        except ray.exceptions.RayError:  # its process or its machine is gone
            lost = True
    if lost:
        yield None


def _work(cifs: Sequence[str], job: RelaxJob) -> Iterator[dict[str, Any]]:
    """On a worker."""
    from crystal_jax.energy.runner import relax_rows

    yield from relax_rows(cifs, job)
