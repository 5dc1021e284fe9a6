"""The cases of the GPU benchmark, in the order in which they are run."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Case:
    """One process that measures one thing.

    Attributes:
        name: Part and case: `train/7b-bf16`.
        module: In `benchmarks.gpu`, run with the settings.
        settings: Its options.
        seconds: What it takes at most, compilation included; it is not begun with less of the budget left.
        rehearsed: A dry run runs it. The others differ from one that is in numbers only.
    """

    name: str
    module: str
    seconds: int
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    rehearsed: bool = False

    @property
    def part(self) -> str:
        """The part of the benchmark that it belongs to."""
        return self.name.split("/")[0]


def _train(name: str, seconds: int, size: str, *, rehearsed: bool = False, **settings: Any) -> Case:
    return Case(f"train/{name}", "lora_step", seconds, {"size": size, **settings}, rehearsed)


def _peer(name: str, seconds: int, size: str, *, rehearsed: bool = False, **settings: Any) -> Case:
    return Case(f"train/{name}", "peer_lora_step", seconds, {"size": size, **settings}, rehearsed)


def _sample(name: str, module: str, seconds: int, *, rehearsed: bool = False, **settings: Any) -> Case:
    return Case(f"sample/{name}", module, seconds, settings, rehearsed)


_QKVO = "q,k,v,o"
CASES: tuple[Case, ...] = (
    Case("correct/ceilings", "ceilings", 40, rehearsed=True),
    Case("correct/numbers", "correct", 90, rehearsed=True),
    _train("7b-bf16-cudnn", 120, "7b", attention="cudnn", rows=16),
    _peer("7b-bf16-peer", 120, "7b", examples=32, rehearsed=True),
    _train("7b-bf16-einsum", 100, "7b", attention="einsum", rows=16),
    _train("7b-bf16-cudnn-kept-products", 100, "7b", attention="cudnn", rows=8, keep_products=True),
    _train("7b-bf16-cudnn-qkvo", 100, "7b", attention="cudnn", rows=16, targets=_QKVO),
    _peer("7b-bf16-peer-qkvo", 100, "7b", examples=32, targets=_QKVO),
    _peer("7b-bf16-peer-no-checkpointing", 100, "7b", examples=8, checkpointing=False),
    _train("7b-int8-cudnn", 100, "7b", attention="cudnn", rows=16, base="int8"),
    _train("7b-nf4-cudnn", 100, "7b", attention="cudnn", rows=16, base="nf4"),
    _train("13b-bf16-cudnn", 120, "13b", attention="cudnn", rows=8),
    _peer("13b-bf16-peer", 120, "13b", examples=16),
    _train("70b-nf4-cudnn", 180, "70b", attention="cudnn", rows=4, base="nf4", rehearsed=True),
    _sample("7b-cudnn", "decode", 200, size="7b", attention="cudnn", batch_sizes="256,128", rehearsed=True),
    _sample("7b-peer", "peer_generate", 120, size="7b", batch_sizes="128,256", rehearsed=True),
    _sample("7b-einsum", "decode", 150, size="7b", attention="einsum", batch_sizes="128"),
    _sample("7b-step-cudnn", "decode_step", 150, size="7b", attention="cudnn", batch_sizes="1,8,64", rehearsed=True),
    _sample("13b-cudnn", "decode", 200, size="13b", attention="cudnn", batch_sizes="128"),
    _sample("13b-peer", "peer_generate", 150, size="13b", batch_sizes="128"),
    Case("small/crystal_small", "crystal_small", 480, rehearsed=True),
    Case("smollm2/lora", "smollm2", 300, {"variant": "lora"}, rehearsed=True),
    Case("smollm2/scratch", "smollm2", 300, {"variant": "scratch"}),
)
PARTS = tuple(dict.fromkeys(case.part for case in CASES))
# What a run does without being asked: trainings of models worth having are calls of their own.
DEFAULT_PARTS = ("correct", "train", "sample")


def named(part: str) -> tuple[Case, ...]:
    """The cases of a part, in their order."""
    return tuple(case for case in CASES if case.part == part)
