"""Provides devices of absent TPU slices and NVIDIA GPUs, for the compilers of libtpu and of JAX's CUDA plugin."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re

import jax
from jax.experimental import topologies

from crystal_jax.compile.chips import CHIPS, GPUS, Chip, Gpu
from crystal_jax.errors import UserError

# Otherwise libtpu asks Google Cloud's metadata server for the type of this machine, complains if it is none, and lets
# only one process per machine load it, because it cannot know that no TPU will be used.
_QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
# Machines with more (NVL72) are of another kind.
GPUS_PER_HOST = 8
_CUDNN = 9, 12  # the oldest version that JAX's plugin accepts


@dataclasses.dataclass(frozen=True)
class Topology:
    """One or more slices of equal shape, such as v5e:4x4 with 16 chips; or GPUs of one host, such as h100:8."""

    name: str
    chip: Chip
    shape: tuple[int, ...]
    num_slices: int
    devices: list[jax.Device]

    @property
    def chips_per_slice(self) -> int:
        """Number of chips of one slice; each is one device to JAX."""
        return math.prod(self.shape)

    @property
    def is_gpu(self) -> bool:
        """Whether its devices are GPUs."""
        return self.chip.gpu is not None


def topology(name: str, *, num_slices: int = 1) -> Topology:
    """Describes TPU slices by the name of one, or the GPUs of a host.

    JAX looks for devices of all kinds, with warnings, unless `jax_platforms` is set to cpu before.

    Raises:
        UserError: the compiler for these devices is not installed, or there is no such topology.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+){0,2})", name)
    generation, shape = (match[1], tuple(int(size) for size in match[2].split("x"))) if match else ("", ())
    if (generation in GPUS) != (len(shape) == 1) or generation not in (*CHIPS, *GPUS):
        raise UserError(
            f"no topology {name!r}; write a TPU's generation ({', '.join(CHIPS)}) and the shape in chips, as v5e:4x4, "
            f"or a GPU ({', '.join(GPUS)}) and how many of a host, as h100:8"
        )
    if num_slices < 1:
        raise UserError(f"num_slices must be positive, not {num_slices}")
    if generation in GPUS:
        return _gpus(name, GPUS[generation], shape[0], num_slices)
    return _slices(name, CHIPS[generation], shape, num_slices)


def _slices(name: str, chip: Chip, shape: tuple[int, ...], num_slices: int) -> Topology:
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("compiling for TPUs needs libtpu; install it with: pip install 'crystal-jax[tpu]'")
    for variable, value in _QUIET.items():
        os.environ.setdefault(variable, value)
    options: dict[str, object] = {}
    if chip.name == "v4":
        options["chip_config_name"] = "megacore"  # the two cores of a chip as one device
    if math.prod(shape) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    if num_slices > 1:
        options["num_slices"] = num_slices
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"no topology {name!r}: {' '.join(str(error).split())}") from error
    return Topology(name, chip, shape, num_slices, list(devices))


def _gpus(name: str, chip: Chip, count: int, num_slices: int) -> Topology:
    if num_slices > 1:
        raise UserError(f"num_slices={num_slices} is of TPUs; GPUs are those of one host")
    if not 1 <= count <= GPUS_PER_HOST:
        raise UserError(f"no topology {name!r}: a host has 1 to {GPUS_PER_HOST} GPUs")
    if importlib.util.find_spec("jax_cuda13_plugin") is None:
        raise UserError(
            "compiling for NVIDIA GPUs needs JAX's CUDA plugin; install it with: pip install 'crystal-jax[cuda]'"
        )
    assert chip.gpu is not None
    described = topologies.get_topology_desc(
        platform="cuda",
        topology_name="",
        topology=f"1x1x{count}",  # partitions (joined by NVLink), hosts per partition, GPUs per host
        target_config=_target_config(chip.gpu, chip.hbm_gbps),
    )
    return Topology(name, chip, (count,), 1, list(described.devices))


def _target_config(gpu: Gpu, hbm_gbps: float) -> str:
    """Returns XLA's description of a GPU for its compiler: a GpuTargetConfigProto as text."""
    return f"""
gpu_device_info {{
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  core_count: {gpu.cores}
  fpus_per_core: {gpu.fpus_per_core}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {gpu.shared_memory_per_block}
  shared_memory_per_core: {gpu.shared_memory_per_core}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  l2_cache_size: {gpu.l2_bytes}
  clock_rate_ghz: {gpu.clock_ghz}
  memory_bandwidth: {int(hbm_gbps * 1e9)}
  device_memory_size: {gpu.memory}
  cuda_compute_capability {{
    major: {gpu.capability}
    feature_extension: {"ACCELERATED_FEATURES" if gpu.accelerated else "NONE"}
  }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: {_CUDNN[0]} minor: {_CUDNN[1]} }}
runtime_version {{ major: 13 }}
device_description_str: "{gpu.description}"
"""
