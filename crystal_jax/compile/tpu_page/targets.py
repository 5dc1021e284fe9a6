"""Lists the programs of docs/TPU.md: configurations, slices and changes."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """Program to compile: a configuration's variant on a slice, with optional changes.

    Attributes:
        size, variant: configs/llama2_{size}.py:{variant}.
        topology, what, num_slices: as the flags of `crystal-jax compile`; `what` is --program.
        mesh: a mesh other than the configuration's.
        rows: slots sampled together; 0 is as many as fit.
        coded: whether the KV cache is int8.
        changes: values of the configuration, by dotted name.
        xla: XLA flags.
        level: an optimisation level other than the table's.
        note: text of the row in a comparison.
    """

    size: str
    variant: str
    topology: str
    what: str = "train"
    num_slices: int = 1
    mesh: str = ""
    rows: int = 0
    coded: bool = False
    changes: tuple[tuple[str, Any], ...] = ()
    xla: tuple[tuple[str, str], ...] = ()
    level: str = ""
    note: str = ""

    @property
    def key(self) -> str:
        """File name of its report."""
        parts = [self.size, self.variant, self.topology, self.what, self.mesh, self.level]
        parts += [f"{self.num_slices}slices"] if self.num_slices > 1 else []
        parts += [f"{self.rows}rows"] if self.rows else []
        parts += ["coded"] if self.coded else []
        parts += [f"{name}={value}" for name, value in (*self.changes, *self.xla)]
        return re.sub(r"[^\w.=,-]", "-", "_".join(part for part in parts if part))


# Google Cloud's names of slices; for v4 and v5p they count cores, of which a chip has two.
SLICES: Mapping[str, str] = {
    "v5e:4x4": "v5e-16",
    "v5e:8x8": "v5e-64",
    "v5e:16x16": "v5e-256",
    "v4:2x2x1": "v4-8",
    "v4:2x2x4": "v4-32",
    "v5p:4x4x4": "v5p-128",
}
TARGETS = (
    ("7b", "tpu", "v5e:4x4"),
    ("7b", "tpu", "v4:2x2x1"),
    ("13b", "tpu", "v5e:4x4"),
    ("13b", "tpu", "v4:2x2x4"),
    ("70b", "tpu", "v5e:8x8"),
    ("70b", "int8", "v5e:8x8"),
    ("70b", "tpu", "v5e:16x16"),
    ("70b", "int8", "v5e:16x16"),
    ("70b", "tpu", "v5p:4x4x4"),
    ("70b", "int8", "v5p:4x4x4"),
)
PAPER = (("7b", "paper", "v5e:4x4"), ("13b", "paper", "v5e:4x4"), ("70b", "paper", "v5p:4x4x4"))
TRAINING = (
    *(Case(size=s, variant=v, topology=t) for s, v, t in (*TARGETS, *PAPER)),
    Case(size="7b", variant="tpu", topology="v5e:4x4", num_slices=2, mesh="2,16,1"),
)
SAMPLING = (
    *(Case(size=s, variant=v, topology=t, what="decode", level="default") for s, v, t in TARGETS),
    *(Case(size=s, variant=v, topology=t, what="prefill", level="default") for s, v, t in (TARGETS[0], TARGETS[-2])),
)
_SPLASH, _KEPT = ("execution.attention", "splash"), ("execution.keep_products", True)
_WINDOWS = "xla_jf_spmd_threshold_for_windowed_einsum_mib"


def _choice(note: str, *, size: str = "7b", where: str = "v5e:4x4", **changed: Any) -> Case:
    return Case(size=size, variant="tpu", topology=where, note=note, **changed)


CHOICES = (
    _choice("7B as shipped"),
    _choice("products start before all of a weight is there (XLA's default)", xla=((_WINDOWS, "0"),)),
    _choice("no recomputation", changes=(("execution.remat", False),)),
    _choice("no recomputation, 4 micro-batches", changes=(("execution.remat", False), ("optimizer.accumulate", 4))),
    _choice(
        "no recomputation, splash attention, 4 micro-batches",
        changes=(("execution.remat", False), _SPLASH, ("optimizer.accumulate", 4)),
    ),
    _choice("splash attention", changes=(_SPLASH,)),
    _choice("products kept", changes=(_KEPT,)),
    _choice("products kept, splash attention", changes=(_KEPT, _SPLASH)),
    _choice("products kept, 2 micro-batches", changes=(_KEPT, ("optimizer.accumulate", 2))),
    _choice("products kept, splash attention, 2 micro-batches", changes=(_KEPT, _SPLASH, ("optimizer.accumulate", 2))),
    _choice("4 micro-batches", changes=(("optimizer.accumulate", 4),)),
    _choice("fsdp 4, tensor 4", mesh="1,4,4"),
    _choice("128 rows of 512", changes=(("data.seq_len", 512), ("data.batch_size", 128))),
    _choice("32 rows of 2,048", changes=(("data.seq_len", 2048), ("data.batch_size", 32))),
    _choice("logits of counted places only, 128 at once", changes=(("execution.loss_chunk", 128),)),
    _choice("no dropout", changes=(("lora.dropout", 0.0),)),
    _choice("70B as shipped", size="70b", where="v5e:8x8"),
    _choice("XLA's default, as above", size="70b", where="v5e:8x8", xla=((_WINDOWS, "0"),)),
    _choice("fsdp 64", size="70b", where="v5e:8x8", mesh="1,64,1"),
    _choice("4 micro-batches", size="70b", where="v5e:8x8", changes=(("optimizer.accumulate", 4),)),
    _choice("splash attention", size="70b", where="v5e:8x8", changes=(_SPLASH,)),
    _choice(
        "products kept, splash attention, 4 micro-batches",
        size="70b",
        where="v5e:8x8",
        changes=(_KEPT, _SPLASH, ("optimizer.accumulate", 4)),
    ),
)


# Rows and meshes of decode steps in which a layer's cache does not fit the chip's own memory.
ROWS = tuple(
    Case(size="70b", variant=variant, topology="v5p:4x4x4", what="decode", level="default", rows=rows, mesh=mesh)
    for variant, mesh, choices in (
        ("tpu", "", (0, 1024, 512)),
        ("int8", "", (0,)),
        ("int8", "8,1,8", (2048, 1024, 512)),
    )
    for rows in choices
) + tuple(
    Case(size="70b", variant=variant, topology="v5p:4x4x4", what="decode", level="default", coded=True)
    for variant in ("tpu", "int8")
)
