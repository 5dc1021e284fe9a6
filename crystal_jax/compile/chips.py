"""Published specifications of TPU chips and NVIDIA GPUs, and the memory that a program may use."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gpu:
    """Properties of an NVIDIA GPU that XLA's compiler needs if the GPU is not present, as CUDA reports them.

    Attributes:
        description: the driver's name of the GPU.
        capability: CUDA compute capability: 9 for Hopper, 8 for Ampere; the minor version is 0.
        accelerated: whether the compiler may use features of this generation only, as sm_90a.
        cores: number of streaming multiprocessors.
        fpus_per_core: float32 units per multiprocessor.
        shared_memory_per_core: bytes per multiprocessor.
        shared_memory_per_block: largest number of bytes per thread block.
        l2_bytes: size of the L2 cache.
        clock_ghz: highest clock rate.
        memory: bytes.
    """

    description: str
    capability: int
    accelerated: bool
    cores: int
    fpus_per_core: int
    shared_memory_per_core: int
    shared_memory_per_block: int
    l2_bytes: int
    clock_ghz: float
    memory: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """TPU generation or type of GPU.

    Attributes:
        name: name in topologies.
        tflops: peak rate of bfloat16 products, 10¹²/s.
        hbm_gbps: memory bandwidth, 10⁹ bytes/s.
        ici_gbps: rate at which a chip can receive from its neighbours over all links, 10⁹ bytes/s: half of the
            published bidirectional bandwidth. A GPU's links are NVLink.
        ici_axes: number of torus axes of the links; 1 if they lead to a switch.
        dcn_gbps: rate at which a chip can receive from other slices, 10⁹ bytes/s; None if it is not published.
        hbm_limit: memory that a program may use, bytes. A TPU's compiler (libtpu 0.0.42) states it when it refuses a
            program. On a GPU, JAX takes the share XLA_PYTHON_CLIENT_MEM_FRACTION: the limit is for
            `GPU_MEMORY_FRACTION`, JAX's default is 0.75.
        source: source of the figures, except for the limit.
        gpu: GPU properties for the compiler; None for a TPU.
    """

    name: str
    tflops: float
    hbm_gbps: float
    ici_gbps: float
    ici_axes: int
    dcn_gbps: float | None
    hbm_limit: int
    source: str
    gpu: Gpu | None = None


_GIB = 2**30
# Share of a GPU's memory for one program; the CUDA context, kernels and NCCL's buffers need the rest.
GPU_MEMORY_FRACTION = 0.92

CHIPS: Mapping[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip(
            name="v4",
            tflops=275,
            hbm_gbps=1200,
            ici_gbps=300,
            ici_axes=3,
            dcn_gbps=None,
            hbm_limit=int(30.75 * _GIB),
            source="cloud.google.com/tpu/docs/v4; links: Jouppi et al., arXiv:2304.01433 (six of 50 GB/s)",
        ),
        Chip(
            name="v5e",
            tflops=197,
            hbm_gbps=819,
            ici_gbps=200,
            ici_axes=2,
            dcn_gbps=25 / 8,
            hbm_limit=int(15.75 * _GIB),
            source="cloud.google.com/tpu/docs/v5e",
        ),
        Chip(
            name="v5p",
            tflops=459,
            hbm_gbps=2765,
            ici_gbps=600,
            ici_axes=3,
            dcn_gbps=50 / 8,
            hbm_limit=int(95.74 * _GIB),
            source="cloud.google.com/tpu/docs/v5p",
        ),
        Chip(
            name="v6e",
            tflops=918,
            hbm_gbps=1638,
            ici_gbps=400,
            ici_axes=2,
            dcn_gbps=None,
            hbm_limit=int(31.25 * _GIB),
            source="cloud.google.com/tpu/docs/v6e",
        ),
    )
}


def _gpu(name: str, *, tflops: float, hbm_gbps: float, nvlink_gbps: float, source: str, gpu: Gpu) -> Chip:
    return Chip(
        name=name,
        tflops=tflops,
        hbm_gbps=hbm_gbps,
        ici_gbps=nvlink_gbps,
        ici_axes=1,
        dcn_gbps=None,
        hbm_limit=int(GPU_MEMORY_FRACTION * gpu.memory),
        source=source,
        gpu=gpu,
    )


# Peaks are for dense products; data sheets "with sparsity" state twice as much.
_H100 = Gpu(
    description="NVIDIA H100 80GB HBM3",
    capability=9,
    accelerated=True,
    cores=132,
    fpus_per_core=128,
    shared_memory_per_core=228 * 1024,
    shared_memory_per_block=227 * 1024,
    l2_bytes=50 * 2**20,
    clock_ghz=1.98,
    memory=int(79.1 * _GIB),  # as the driver reports; nominally 80 GB
)
GPUS: Mapping[str, Chip] = {
    chip.name: chip
    for chip in (
        _gpu(
            "h100",
            tflops=989,
            hbm_gbps=3350,
            nvlink_gbps=450,
            source="NVIDIA H100 Tensor Core GPU data sheet, H100 SXM; CUDA C++ programming guide, capability 9.0",
            gpu=_H100,
        ),
        _gpu(
            "h200",
            tflops=989,
            hbm_gbps=4800,
            nvlink_gbps=450,
            source="NVIDIA H200 Tensor Core GPU data sheet, H200 SXM; CUDA C++ programming guide, capability 9.0",
            gpu=dataclasses.replace(_H100, description="NVIDIA H200", memory=int(139.8 * _GIB)),
        ),
        _gpu(
            "a100",
            tflops=312,
            hbm_gbps=2039,
            nvlink_gbps=300,
            source="NVIDIA A100 Tensor Core GPU data sheet, A100 80GB SXM; CUDA C++ programming guide, capability 8.0",
            gpu=Gpu(
                description="NVIDIA A100-SXM4-80GB",
                capability=8,
                accelerated=False,
                cores=108,
                fpus_per_core=64,
                shared_memory_per_core=164 * 1024,
                shared_memory_per_block=163 * 1024,
                l2_bytes=40 * 2**20,
                clock_ghz=1.41,
                memory=int(79.2 * _GIB),
            ),
        ),
    )
}
