"""Counts the cost of a compiled program on one chip: products, HBM traffic, and collectives.

Loop bodies count as often as they run. Data inside a fused operation causes no memory traffic. For a sliced array only
the slice is read. An array updated in place does not count as rewritten.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Sequence

import numpy as np

from crystal_jax.compile.hlo import Computation, Instruction, Program, Shape, trip_count

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# Renamed or regrouped values, and ends of operations that are counted at their start.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"}
_FREE |= {"optimization-barrier", "add-dependency", "while", "call", "conditional"}
_SLICES = {"dynamic-slice", "slice", "gather"}
_ELSEWHERE = {*COLLECTIVES, "custom-call"}  # counted elsewhere: a collective within a fusion, for instance
# JAX's splash kernels by name, and their number of products over all pairs of positions: q·k and weights·v forward;
# backward each kernel computes q·k and values·gradient again, besides the gradients.
_SPLASH = re.compile(r"%splash_m[hq]a_(fwd|dq|dkv)")
_SPLASH_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}
_SEE_THROUGH = {"bitcast", "reshape", "convert", "copy", "transpose"}


@dataclasses.dataclass
class Traffic:
    """Collectives of one kind.

    Attributes:
        count: number of calls.
        bytes: bytes that a chip receives.
        between_slices: the part of `bytes` that comes from other slices, over the network.
    """

    count: int = 0
    bytes: float = 0.0
    between_slices: float = 0.0


@dataclasses.dataclass
class Cost:
    """Cost of one run of a program on one chip.

    Attributes:
        flops: operations of matrix products; a multiplication and an addition are two. Other operations are not
            counted.
        bytes: bytes read from and written to HBM.
        collectives: traffic by kind of collective.
        kernels: calls of hand-written kernels, whose products are not in `flops`. Splash kernels are not among them:
            their products count in full, including skipped tiles.
        unknown_loops: loops of unknown trip count; they count as one iteration.
    """

    flops: float = 0.0
    bytes: float = 0.0
    collectives: dict[str, Traffic] = dataclasses.field(default_factory=dict)
    kernels: int = 0
    unknown_loops: int = 0

    def add(self, other: Cost) -> None:
        """Adds the cost of another part of the same program."""
        self.flops += other.flops
        self.bytes += other.bytes
        self.kernels += other.kernels
        self.unknown_loops += other.unknown_loops
        for kind, theirs in other.collectives.items():
            ours = self.collectives.setdefault(kind, Traffic())
            ours.count += theirs.count
            ours.bytes += theirs.bytes
            ours.between_slices += theirs.between_slices


def count(program: Program, *, chips_per_slice: int | None = None) -> Cost:
    """Counts the cost of a program; `chips_per_slice` is needed if there are several slices."""
    return _Counter(program, chips_per_slice).run()


class _Counter:
    def __init__(self, program: Program, chips_per_slice: int | None):
        self.program, self.chips_per_slice, self.cost = program, chips_per_slice, Cost()
        self.begun: set[str] = set()

    def run(self) -> Cost:
        self._visit(self.program[self.program.entry], 1)
        return self.cost

    def _visit(self, computation: Computation, times: int) -> None:
        """Counts a computation that runs instruction by instruction."""
        for instruction in computation:
            if instruction.opcode == "while":
                turns = trip_count(self.program, computation, instruction)
                self.cost.unknown_loops += turns is None
                self._visit(self.program[str(instruction.called("body"))], times * (1 if turns is None else turns))
            elif instruction.opcode == "call":
                self._visit(self.program[str(instruction.called("to_apply"))], times)
            elif instruction.opcode == "conditional":
                self._conditional(instruction, times)
            else:
                self._operation(computation, instruction, times)

    def _conditional(self, instruction: Instruction, times: int) -> None:
        """Counts the most expensive branch, because the branch taken is unknown before the program runs."""
        names = re.findall(r"%[\w.\-]+", instruction.option(r"branch_computations=\{([^}]*)\}") or "")
        names = names or [str(instruction.called(f"{which}_computation")) for which in ("true", "false")]
        branches = []
        for name in names:
            branch = _Counter(self.program, self.chips_per_slice)
            branch._visit(self.program[name], times)
            branches.append(branch.cost)
        self.cost.add(max(branches, key=lambda cost: (cost.flops, cost.bytes)))

    def _operation(self, computation: Computation, instruction: Instruction, times: int) -> None:
        self.cost.bytes += times * hbm_bytes(self.program, computation, instruction)
        self._products_and_collectives(computation, instruction, times)

    def _products_and_collectives(
        self, computation: Computation, instruction: Instruction, times: int, *, fused: bool = False
    ) -> None:
        opcode = instruction.opcode
        kind = opcode.removesuffix("-start")
        if opcode in ("convolution", "dot"):
            self.cost.flops += times * product_flops(computation, instruction)
        elif kind in COLLECTIVES:
            if fused and not self._begins(instruction):
                return
            self._collective(computation, instruction, kind, times)
            if fused:
                self.cost.bytes += times * (_hbm(operand_shapes(computation, instruction)) + _hbm(instruction.shapes))
        elif opcode == "custom-call" and instruction.option(r'custom_call_target="(tpu_custom_call)"'):
            products = splash_flops(computation, instruction)
            self.cost.flops += times * products
            self.cost.kernels += 0 if products else times
        elif opcode in ("fusion", "async-start"):
            inner = self.program[str(instruction.called("calls"))]
            for part in inner:
                self._products_and_collectives(inner, part, times, fused=True)

    def _begins(self, instruction: Instruction) -> bool:
        """Whether a fused collective occurs for the first time: each product that it overlaps with contains a part of
        it.
        """
        channel = instruction.option(r"channel_id=(\d+)") or instruction.name
        seen = channel in self.begun
        self.begun.add(channel)
        return not seen

    def _collective(self, computation: Computation, instruction: Instruction, kind: str, times: int) -> None:
        held = sum(shape.bytes for shape in operand_shapes(computation, instruction))
        if kind == "collective-permute":
            pairs = source_target_pairs(instruction)
            received = float(held) if pairs else 0.0
            crossing = any(self._slice(a) != self._slice(b) for a, b in pairs)
        else:
            groups = replica_groups(instruction)
            n = len(groups[0])
            factor = {"all-gather": n - 1, "all-reduce": 2 * (n - 1) / n}.get(kind, (n - 1) / n)
            received = factor * held
            crossing = any(len({self._slice(i) for i in group}) > 1 for group in groups)
        traffic = self.cost.collectives.setdefault(kind, Traffic())
        traffic.count += times
        traffic.bytes += times * received
        traffic.between_slices += times * received if crossing else 0.0

    def _slice(self, device: int) -> int:
        return 0 if self.chips_per_slice is None else device // self.chips_per_slice


def operand_shapes(computation: Computation, instruction: Instruction) -> list[Shape]:
    """Returns the shapes of an instruction's operands."""
    return [shape for name in instruction.operands for shape in computation[name].shapes]


def product_flops(computation: Computation, instruction: Instruction) -> int:
    """Returns the multiplications and additions of a `dot` or `convolution`; the TPU compiler converts the former to
    the latter.
    """
    left, right = (computation[name].shapes[0] for name in instruction.operands[:2])
    out = instruction.shapes[0]
    if instruction.opcode == "dot":
        axes = instruction.option(r"lhs_contracting_dims=\{([\d,]*)\}") or ""
        return 2 * out.elements * math.prod(left.sizes[int(axis)] for axis in axes.split(",") if axis)
    labels = instruction.option(r"dim_labels=(\S+?),? ") or instruction.option(r"dim_labels=([^,]+)") or ""
    left_axes, right_axes, out_axes = re.split("_|->", labels.rstrip(","))
    total = 2 * out.sizes[out_axes.index("b")] * out.sizes[out_axes.index("f")] * right.sizes[right_axes.index("i")]
    window = _window(instruction)
    for axis in (a for a in out_axes if a.isdigit()):
        total *= _meetings(
            left.sizes[left_axes.index(axis)], out.sizes[out_axes.index(axis)], *(w[int(axis)] for w in window)
        )
    return total


def splash_flops(computation: Computation, instruction: Instruction) -> int:
    """Returns the multiplications and additions of a splash kernel over all pairs of positions of a row; 0 for other
    kernels.
    """
    kernel = _SPLASH.match(instruction.name)
    if kernel is None:
        return 0
    # Queries and keys, [..., head, position, width], follow integer arrays that state which tiles to skip.
    q, keys, *_ = (shape for shape in operand_shapes(computation, instruction) if shape.dtype in ("bf16", "f32"))
    return 2 * _SPLASH_PRODUCTS[kernel[1]] * q.elements * keys.sizes[-2]


def _window(instruction: Instruction) -> tuple[Sequence[int], ...]:
    """Returns size, stride, padding before, and dilation of input and window, for each spatial axis."""
    text = instruction.option(r"window=\{([^}]*)\}") or ""
    stated = dict(part.split("=") for part in text.split())
    size = [int(n) for n in stated.get("size", "1").split("x")] if "size" in stated else [1] * 8

    def numbers(name: str, default: int) -> list[int]:
        given = stated.get(name)
        return [int(n.split("_")[0]) for n in given.split("x")] if given else [default] * len(size)

    return size, numbers("stride", 1), numbers("pad", 0), numbers("lhs_dilate", 1), numbers("rhs_dilate", 1)


@functools.cache
def _meetings(n_in: int, n_out: int, size: int, stride: int, pad: int, dilate_in: int, dilate_window: int) -> int:
    """Counts pairs of output and window positions that meet an element of the input, not padding or a gap.

    Batched products are compiled to convolutions whose window meets a single element for each output.
    """
    place = np.arange(n_out)[:, None] * stride - pad + np.arange(size)[None] * dilate_window
    return int(((place >= 0) & (place <= (n_in - 1) * dilate_in) & (place % dilate_in == 0)).sum())


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


_SUB_AXIS = re.compile(r"'(\w+)'(?::\((\d+)\)(\d+))?")


def source_target_pairs(instruction: Instruction) -> list[tuple[int, int]]:
    """Returns (sender, receiver) pairs of a collective-permute."""
    text = instruction.option(r"source_target_pairs=\{(.*?\})\}") or ""
    return [(int(a), int(b)) for a, b in re.findall(r"\{(\d+),(\d+)\}", text)]


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


def hbm_bytes(program: Program, computation: Computation, instruction: Instruction) -> int:
    """Returns the bytes that an instruction reads from and writes to HBM."""
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith("-done"):
        return 0
    shapes = operand_shapes(computation, instruction)
    if opcode == "fusion":
        return _fusion_bytes(program, computation, instruction)
    if opcode in ("dynamic-slice", "slice", "gather"):
        read = min(shapes[0].bytes, _hbm(instruction.shapes)) if shapes[0].in_hbm else 0
        return read + _hbm(shapes[1:]) + _hbm(instruction.shapes)
    if opcode in ("dynamic-update-slice", "scatter"):
        update = shapes[1 if opcode == "dynamic-update-slice" else 2]
        return (shapes[0].in_hbm + update.in_hbm) * update.bytes
    if opcode in ("slice-start", "dynamic-slice-start"):  # the tuple is (source, target, context)
        target = instruction.shapes[1]
        return (shapes[0].in_hbm + target.in_hbm) * target.bytes
    if opcode == "copy-start":  # the tuple is (target, source, context)
        return _hbm(instruction.shapes[:1]) + _hbm(shapes)
    if opcode.endswith("-start"):
        # The tuples repeat the operands.
        return max(_hbm(instruction.shapes) - _hbm(shapes), 0) + _hbm(shapes)
    return _hbm(shapes) + _hbm(instruction.shapes)


def _hbm(shapes: Iterable[Shape]) -> int:
    return sum(shape.bytes for shape in shapes if shape.in_hbm)


def _fusion_bytes(program: Program, computation: Computation, fusion: Instruction) -> int:
    inner = program[str(fusion.called("calls"))]
    total = 0
    for number, name in enumerate(fusion.operands):
        shapes = computation[name].shapes
        if len(shapes) == 1 and shapes[0].in_hbm:
            total += _read(program, inner, inner.parameters[number].name, shapes[0].bytes)
        else:
            total += _hbm(shapes)
    roots = inner[inner.root]
    names = roots.operands if roots.opcode == "tuple" else (roots.name,)
    if len(names) != len(fusion.shapes):
        return total + _hbm(fusion.shapes)
    return total + sum(_written(program, inner, n, s) for n, s in zip(names, fusion.shapes, strict=True) if s.in_hbm)


def _read(program: Program, computation: Computation, name: str, whole: int) -> int:
    """Returns the bytes read of a value in a fused computation; fewer than all if only slices of it are used."""
    source = computation[name].shapes[0]

    def share(of: Shape) -> int:
        return round(whole * of.elements / max(source.elements, 1))

    total = 0
    for user in computation.users[name]:
        first = user.operands[0] == name
        if user.opcode in _SLICES and first:
            total += share(user.shapes[0])
        elif user.opcode == "dynamic-update-slice" and first:
            continue  # updated in place
        elif user.opcode in _ELSEWHERE or (user.opcode == "tuple" and user.name == computation.root):
            continue  # counted with the collective, or passed on
        elif _sees_through(program, user) and computation.root != user.name:
            total += _read(program, computation, user.name, whole)
        elif user.opcode == "fusion":
            inner = program[str(user.called("calls"))]
            numbers = [i for i, operand in enumerate(user.operands) if operand == name]
            total += sum(_read(program, inner, inner.parameters[i].name, whole) for i in numbers)
        else:
            return whole
    return min(total, whole)


def _sees_through(program: Program, instruction: Instruction) -> bool:
    """Whether each element of the result is an element of the operand, in another position or type."""
    if instruction.opcode != "fusion":
        return instruction.opcode in _SEE_THROUGH
    inner = program[str(instruction.called("calls"))]
    return all(part.opcode == "parameter" or _sees_through(program, part) for part in inner)


def _written(program: Program, computation: Computation, name: str, shape: Shape) -> int:
    """Returns the bytes written of a fused computation's result; fewer than all if the array is updated in place."""
    instruction = computation[name]
    if instruction.opcode in _ELSEWHERE or instruction.opcode == "parameter":
        return 0
    if instruction.opcode == "dynamic-update-slice":
        return computation[instruction.operands[1]].shapes[0].bytes
    if instruction.opcode in ("bitcast", "reshape"):
        return _written(program, computation, instruction.operands[0], shape)
    if instruction.opcode == "fusion":
        inner = program[str(instruction.called("calls"))]
        return _written(program, inner, inner.root, shape) if inner[inner.root].opcode != "tuple" else shape.bytes
    return shape.bytes
