"""Options of compilation, beside the configuration and the topology."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from crystal_jax.config import MeshConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompileOptions:
    """Options of compilation, beside the configuration and the topology.

    Attributes:
        mesh: a mesh other than the configuration's; sampling has its own default (`sampling_mesh`).
        rows: slots sampled together; by default as many as fit.
        coded: whether the KV cache is int8.
        optimization_level: JAX's optimization level: O1 compiles in a fraction of the time of `default`.
        compiler_options: XLA flags, by name.
    """

    mesh: MeshConfig | None = None
    rows: int | None = None
    coded: bool = False
    optimization_level: str = "default"
    compiler_options: Mapping[str, str] = dataclasses.field(default_factory=dict)
