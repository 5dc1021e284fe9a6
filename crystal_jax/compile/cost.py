"""What a compiled program does on one chip: products, bytes to and from memory, and what it sends to other chips.

All is counted with the number of times that loops run. What a fused operation keeps to itself costs no memory traffic;
of an array that it slices, only the slice is read; and an array that is updated in place is not counted as rewritten.
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
# Names and regroupings of values, and the ends of operations that are counted where they start.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"}
_FREE |= {"optimization-barrier", "add-dependency", "while", "call", "conditional"}
_SLICES = {"dynamic-slice", "slice", "gather"}
_ELSEWHERE = {*COLLECTIVES, "custom-call"}  # within a fusion: a collective on its way
# JAX's splash kernels by name, and their products of all pairs of places: q·k and weights·v forward; backward the first
# again, and values·gradient, each kernel for itself, beside the gradients.
_SPLASH = re.compile(r"%splash_m[hq]a_(fwd|dq|dkv)")
_SPLASH_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}
_SEE_THROUGH = {"bitcast", "reshape", "convert", "copy", "transpose"}


@dataclasses.dataclass
class Traffic:
    """Collectives of one kind: how many run, and what a chip receives, in bytes; `between_slices` of it by network."""

    count: int = 0
    bytes: float = 0.0
    between_slices: float = 0.0


@dataclasses.dataclass
class Cost:
    """Of one run of a program on one chip.

    Attributes:
        flops: Of products of matrices; a multiplication and an addition are two. Nothing else is counted.
        bytes: Read from and written to HBM.
        collectives: By kind.
        kernels: Hand-written kernels called, whose products are not in `flops`; splash kernels are not among them, and
            count in full, with the tiles that they skip.
        unknown_loops: Loops whose number of turns could not be read; they are counted as one turn.
    """

    flops: float = 0.0
    bytes: float = 0.0
    collectives: dict[str, Traffic] = dataclasses.field(default_factory=dict)
    kernels: int = 0
    unknown_loops: int = 0

    def add(self, other: Cost) -> None:
        """Adds another part of the same program."""
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
    """Counts a program; `chips_per_slice` is given where there are several slices."""
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
        """Counts the branch that costs most: which one is taken is not known before the program runs."""
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
        """Whether a fused collective is seen first: a part of it is in each product that it overlaps with."""
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
    """The arrays that an instruction takes."""
    return [shape for name in instruction.operands for shape in computation[name].shapes]


def product_flops(computation: Computation, instruction: Instruction) -> int:
    """Multiplications and additions of a `dot` or `convolution`; the TPU compiler turns the former into the latter."""
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
    """Multiplications and additions of a splash kernel, over all pairs of places of a row; 0 of another kernel."""
    kernel = _SPLASH.match(instruction.name)
    if kernel is None:
        return 0
    # After the arrays that say which tiles to skip, of integers, come queries and keys: [..., head, place, width].
    q, keys, *_ = (shape for shape in operand_shapes(computation, instruction) if shape.dtype in ("bf16", "f32"))
    return 2 * _SPLASH_PRODUCTS[kernel[1]] * q.elements * keys.sizes[-2]


def _window(instruction: Instruction) -> tuple[Sequence[int], ...]:
    """Size, stride, padding before, and dilation of the input and of the window, for each spatial axis."""
    text = instruction.option(r"window=\{([^}]*)\}") or ""
    stated = dict(part.split("=") for part in text.split())
    size = [int(n) for n in stated.get("size", "1").split("x")] if "size" in stated else [1] * 8

    def numbers(name: str, default: int) -> list[int]:
        given = stated.get(name)
        return [int(n.split("_")[0]) for n in given.split("x")] if given else [default] * len(size)

    return size, numbers("stride", 1), numbers("pad", 0), numbers("lhs_dilate", 1), numbers("rhs_dilate", 1)


@functools.cache
def _meetings(n_in: int, n_out: int, size: int, stride: int, pad: int, dilate_in: int, dilate_window: int) -> int:
    """How many pairs of output and window position meet an element of the input, and not padding or a gap.

    Batched products come as convolutions whose window meets a single element for each output.
    """
    place = np.arange(n_out)[:, None] * stride - pad + np.arange(size)[None] * dilate_window
    return int(((place >= 0) & (place <= (n_in - 1) * dilate_in) & (place % dilate_in == 0)).sum())


def replica_groups(instruction: Instruction) -> np.ndarray:
    """Which devices exchange data: shape [groups, devices of a group]. XLA has three ways to write it.

    Raises:
        ValueError: it is none of them.
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
    """Device numbers in the order that "[32,8]T(1,0)" stands for: counted over that grid, and its axes exchanged."""
    match = re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\)?)?", order)
    if match is None:
        return np.array(_numbers(order))
    devices = np.arange(math.prod(_numbers(match[1]))).reshape(_numbers(match[1]))
    return (devices.transpose(_numbers(match[2])) if match[2] else devices).reshape(-1)


def _mesh_groups(mesh: str, order: str | None, axes: str) -> np.ndarray:
    """Groups along some axes of a mesh; 'x':(4)2 is the part of x of size 2 that comes after its first part of 4."""
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
    """Who sends to whom in a collective-permute."""
    text = instruction.option(r"source_target_pairs=\{(.*?\})\}") or ""
    return [(int(a), int(b)) for a, b in re.findall(r"\{(\d+),(\d+)\}", text)]


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


def hbm_bytes(program: Program, computation: Computation, instruction: Instruction) -> int:
    """What an instruction reads from and writes to HBM."""
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
    if opcode in ("slice-start", "dynamic-slice-start"):  # its tuple is source, target, context
        target = instruction.shapes[1]
        return (shapes[0].in_hbm + target.in_hbm) * target.bytes
    if opcode == "copy-start":  # its tuple is target, source, context
        return _hbm(instruction.shapes[:1]) + _hbm(shapes)
    if opcode.endswith("-start"):
        # Their tuples repeat the operands.
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
    """What is read of a fused computation's value, if only slices of it are used."""
    source = computation[name].shapes[0]

    def share(of: Shape) -> int:
        return round(whole * of.elements / max(source.elements, 1))

    total = 0
    for user in computation.users[name]:
        first = user.operands[0] == name
        if user.opcode in _SLICES and first:
            total += share(user.shapes[0])
        elif user.opcode == "dynamic-update-slice" and first:
            continue  # in place
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
    """Whether an element of the result is one of the operand, in another place or type."""
    if instruction.opcode != "fusion":
        return instruction.opcode in _SEE_THROUGH
    inner = program[str(instruction.called("calls"))]
    return all(part.opcode == "parameter" or _sees_through(program, part) for part in inner)


def _written(program: Program, computation: Computation, name: str, shape: Shape) -> int:
    """What is written of a fused computation's result, if it is an array updated in place."""
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
