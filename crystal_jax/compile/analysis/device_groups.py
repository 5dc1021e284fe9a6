"""Reads which devices a collective of a compiled program connects; XLA has several notations."""

from __future__ import annotations

import math
import re

import numpy as np

from crystal_jax.compile.analysis.hlo import Instruction

_SUB_AXIS = re.compile(r"'(\w+)'(?::\((\d+)\)(\d+))?")


def replica_groups(instruction: Instruction) -> np.ndarray:
    """Returns the groups of devices that exchange data, shape [groups, devices per group]. XLA has three notations.

    Raises:
        ValueError: the notation is unknown.
    """
    text = instruction.attributes
    if match := re.search(r"replica_groups=\{(\{[\d,{} ]*\})\}", text):
        return np.array([[int(i) for i in group.split(",")] for group in re.findall(r"\{([\d, ]+)\}", match[1])])
    if match := re.search(r"replica_groups=\[([\d,]+)\]<=(\S+?)(?=, |$)", text):
        return _devices(match[2]).reshape(_numbers(match[1]))
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))? ?\{([^}]*)\}", text):
        return _mesh_groups(match[1], match[2], match[3])
    raise ValueError(f"no replica groups in: {text[:200]}")


def _devices(order: str) -> np.ndarray:
    """Returns device numbers in the order of "[32,8]T(1,0)": counted over that grid, with its axes transposed."""
    match = re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\)?)?", order)
    if match is None:
        return np.array(_numbers(order))
    devices = np.arange(math.prod(_numbers(match[1]))).reshape(_numbers(match[1]))
    return (devices.transpose(_numbers(match[2])) if match[2] else devices).reshape(-1)


def _mesh_groups(mesh: str, order: str | None, axes: str) -> np.ndarray:
    """Returns groups along some axes of a mesh; 'x':(4)2 is the sub-axis of x of size 2 that follows a sub-axis of size
    4.
    """
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh)}
    grid: list[int] = []
    along: list[int] = []
    parts = {name: (int(before or 1), int(size)) for name, before, size in _SUB_AXIS.findall(axes) if size}
    whole = {name for name, _, size in _SUB_AXIS.findall(axes) if not size}
    for name, size in sizes.items():
        if name in whole:
            along.append(len(grid))
            grid.append(size)
        elif name in parts:
            before, part = parts[name]
            along.append(len(grid) + 1)
            grid += [before, part, size // before // part]
        else:
            grid.append(size)
    devices = np.arange(math.prod(grid)) if order is None else _devices(order)
    together = np.moveaxis(devices.reshape(grid), along, range(-len(along), 0))
    return together.reshape(-1, math.prod(grid[axis] for axis in along))


def source_target_pairs(instruction: Instruction) -> list[tuple[int, int]]:
    """Returns (sender, receiver) pairs of a collective-permute."""
    text = instruction.option(r"source_target_pairs=\{(.*?\})\}") or ""
    return [(int(a), int(b)) for a, b in re.findall(r"\{(\d+),(\d+)\}", text)]


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]
