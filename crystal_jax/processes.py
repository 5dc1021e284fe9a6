"""Connects the processes of a multi-process job, and selects the one that prints and writes."""

from __future__ import annotations

import os

from absl import flags

from crystal_jax.errors import UserError


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags of commands that run as several processes."""
    flags.DEFINE_bool(
        "distributed",
        False,
        "This process is one of several. TPU slices, GKE, SLURM and Open MPI say which; elsewhere the next three do.",
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        "coordinator_address",
        None,
        "HOST:PORT of the first process; or in the environment: JAX_COORDINATOR_ADDRESS.",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "num_processes", None, "How many there are; or JAX_NUM_PROCESSES.", lower_bound=1, flag_values=flag_values
    )
    flags.DEFINE_integer(
        "process_id", None, "Which one this is, from 0; or JAX_PROCESS_ID.", lower_bound=0, flag_values=flag_values
    )


def join_if_asked(flag_values: flags.FlagValues) -> None:
    """Calls `join` with the flags' values if --distributed is set."""
    if flag_values.distributed:
        join(flag_values.coordinator_address, flag_values.num_processes, flag_values.process_id)


def join(coordinator_address: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Connects this process to the others of the job; must be called before any device is used.

    Missing arguments are taken from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or else from the
    job's environment: JAX supports TPU pod slices, GKE, SLURM and Open MPI.

    Raises:
        UserError: the information is incomplete, or the coordinator does not answer.
    """
    import jax

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
    """Whether this is the process that prints and writes."""
    import jax

    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Waits until all processes have reached this point."""
    import jax
    from jax.experimental import multihost_utils

    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)
