"""TPU chips: what Google Cloud's documentation states of each, and what the compiler leaves a program of its memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One generation of TPUs.

    Attributes:
        name: As topologies are called.
        tflops: Peak of bfloat16 products, 10¹² a second.
        hbm_gbps: Memory bandwidth, 10⁹ bytes a second.
        ici_gbps: What a chip can receive from its neighbours over all of its links, 10⁹ bytes a second: half of the
            bidirectional bandwidth that is published.
        ici_axes: Axes of the torus that the links belong to.
        dcn_gbps: What a chip can receive from other slices, 10⁹ bytes a second; None where it is not published.
        hbm_limit: What a program may use, bytes: the compiler (libtpu 0.0.42) says so when it refuses one.
        source: Of the figures, but for the limit.
    """

    name: str
    tflops: float
    hbm_gbps: float
    ici_gbps: float
    ici_axes: int
    dcn_gbps: float | None
    hbm_limit: int
    source: str


_GIB = 2**30
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
