"""Devices of a TPU slice that is not there, for the compiler that comes with libtpu."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re

import jax
from jax.experimental import topologies

from crystal_jax.compile.chips import CHIPS, Chip
from crystal_jax.errors import UserError

# libtpu otherwise asks Google Cloud's metadata server which machine this is, complains that it is none, and lets one
# process of a machine load it: it cannot know that no TPU will be touched.
_QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """One or more slices of equal shape, such as v5e:4x4, which has 16 chips."""

    name: str
    chip: Chip
    shape: tuple[int, ...]
    num_slices: int
    devices: list[jax.Device]

    @property
    def chips_per_slice(self) -> int:
        """Chips of one slice; each is one device to JAX."""
        return math.prod(self.shape)


def topology(name: str, *, num_slices: int = 1) -> Topology:
    """Describes slices by the name of one.

    Raises:
        UserError: libtpu is not installed, or there is no such topology.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+){1,2})", name)
    if not match or match[1] not in CHIPS:
        raise UserError(
            f"no topology {name!r}; write the generation ({', '.join(CHIPS)}) and the shape in chips, as v5e:4x4"
        )
    if num_slices < 1:
        raise UserError(f"num_slices must be positive, not {num_slices}")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("compiling for TPUs needs libtpu; install it with: pip install 'crystal-jax[tpu]'")
    for variable, value in _QUIET.items():
        os.environ.setdefault(variable, value)
    shape = tuple(int(size) for size in match[2].split("x"))
    options: dict[str, object] = {}
    if match[1] == "v4":
        options["chip_config_name"] = "megacore"  # the two cores of a chip as one device
    if math.prod(shape) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    if num_slices > 1:
        options["num_slices"] = num_slices
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"no topology {name!r}: {' '.join(str(error).split())}") from error
    return Topology(name, CHIPS[match[1]], shape, num_slices, list(devices))
