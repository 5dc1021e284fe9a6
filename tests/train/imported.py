"""What the server of `supervised.py` imports before it forks. Nothing here may touch a device."""

import jax.experimental.multihost_utils  # noqa: F401

import crystal_jax.processes
import crystal_jax.sample.rules
import crystal_jax.sample.run
import crystal_jax.train.loop
import crystal_jax.train.probes
import crystal_jax.train.run  # noqa: F401
