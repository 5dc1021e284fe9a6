"""The processes of one run: how they find each other, and which of them speaks."""

from __future__ import annotations

import os

import jax
from jax.experimental import multihost_utils

from crystal_jax.errors import UserError


def join(coordinator_address: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Makes this process one of several; must come before anything that touches a device.

    What is not given comes from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, and else from what runs
    the job: TPU pod slices, GKE, SLURM and Open MPI are known to JAX.

    Raises:
        UserError: neither says enough, or the coordinator does not answer.
    """
    try:
        jax.distributed.initialize(
            coordinator_address,
            _environment("JAX_NUM_PROCESSES") if num_processes is None else num_processes,
            _environment("JAX_PROCESS_ID") if process_id is None else process_id,
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"--distributed: {str(error).splitlines()[0].rstrip('.')}; where no TPU, GKE, SLURM or MPI says it, give "
            "--coordinator_address=HOST:PORT --num_processes=N --process_id=I"
        ) from error


def _environment(name: str) -> int | None:
    value = os.environ.get(name)
    if value is not None and not value.isdecimal():
        raise UserError(f"{name}={value!r} in the environment is not a number")
    return None if value is None else int(value)


def is_first() -> bool:
    """Whether this is the process that prints and writes logs."""
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Goes on when all processes are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)
