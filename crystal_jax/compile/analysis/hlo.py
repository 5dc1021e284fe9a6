"""Parses XLA's optimised programs from their text: computations, instructions, shapes, and trip counts of loops.

JAX provides the text of a compiled program and a few totals, which count a loop's body once, independent of its trip
count. `cost.py` does the counting.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

BITS: Mapping[str, int] = {
    **dict.fromkeys(("pred", "s8", "u8"), 8),
    **dict.fromkeys(("s4", "u4"), 4),
    **dict.fromkeys(("s2", "u2"), 2),
    **dict.fromkeys(("s16", "u16", "f16", "bf16"), 16),
    **dict.fromkeys(("s32", "u32", "f32"), 32),
    **dict.fromkeys(("s64", "u64", "f64", "c64"), 64),
    **dict.fromkeys(("c128",), 128),
    **dict.fromkeys(("token", "opaque"), 0),
}
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")  # opcodes
_ARRAY = re.compile(r"(?P<type>[a-z]\w*)\[(?P<sizes>[\d,<=]*)\](?P<layout>\{[^{}]*\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_NAME = re.compile(r"%[\w.\-]+")
_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?(?P<name>%[\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^  (?P<root>ROOT )?(?P<name>%[\w.\-]+) = (?P<rest>.*)$")
_ATTRIBUTE = r"{}=(%[\w.\-]+)"


@dataclasses.dataclass(frozen=True)
class Shape:
    """Array: its element type, its sizes, and whether it is in the chip's main memory (HBM)."""

    dtype: str
    sizes: tuple[int, ...]
    in_hbm: bool

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.sizes)

    @property
    def bytes(self) -> int:
        """Size of the elements in bytes, without the padding of tiles."""
        bits = BITS.get(self.dtype, 8)  # the default covers all 8-bit floats
        return -(-self.elements * bits // 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """Operation: `name = shapes opcode(operands), attributes`; tuples, nested ones included, are flattened."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    arguments: str
    attributes: str

    def called(self, attribute: str) -> str | None:
        """Returns the computation named by an attribute such as `body`."""
        match = re.search(_ATTRIBUTE.format(attribute), self.attributes)
        return match.group(1) if match else None

    def option(self, pattern: str) -> str | None:
        """Returns the first group of a pattern in the attributes."""
        match = re.search(pattern, self.attributes)
        return match.group(1) if match else None

    @property
    def index(self) -> int:
        """Index of a get-tuple-element, or of a parameter."""
        return int(self.option(r"index=(\d+)") or 0) if self.opcode == "get-tuple-element" else int(self.arguments)


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions by name, in order; `root` is the name of the result."""

    name: str
    instructions: Mapping[str, Instruction]
    root: str

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions.values())

    def __getitem__(self, name: str) -> Instruction:
        return self.instructions[name]

    @functools.cached_property
    def parameters(self) -> dict[int, Instruction]:
        """Parameters by index."""
        return {i.index: i for i in self if i.opcode == "parameter"}

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Instructions that use each instruction as an operand."""
        users: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for instruction in self:
            for operand in dict.fromkeys(instruction.operands):
                users[operand].append(instruction)
        return users


@dataclasses.dataclass(frozen=True)
class Program:
    """All computations of a module."""

    computations: Mapping[str, Computation]
    entry: str

    def __getitem__(self, name: str) -> Computation:
        return self.computations[name]


def parse(text: str) -> Program:
    """Parses the text of `compiled.as_text()`.

    Raises:
        ValueError: the text has no entry computation.
    """
    computations: dict[str, Computation] = {}
    instructions: dict[str, Instruction] = {}
    entry = name = root = ""
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            name, instructions, root = match["name"], {}, ""
            entry = name if match["entry"] else entry
        elif line == "}":
            computations[name] = Computation(name, instructions, root)
        elif match := _INSTRUCTION.match(line):
            instruction = _instruction(match["name"], match["rest"])
            instructions[instruction.name] = instruction
            root = instruction.name if match["root"] else root
    if not entry:
        raise ValueError("this is no HLO text: it has no ENTRY")
    return Program(computations, entry)


def _instruction(name: str, rest: str) -> Instruction:
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shapes = tuple(_shape(match) for match in _ARRAY.finditer(rest[:end]))
    begin = rest.index("(", end)
    close = _closing(rest, begin)
    arguments = rest[begin + 1 : close]
    operands = tuple(_NAME.findall(arguments))
    return Instruction(name, rest[end:begin].strip(), shapes, operands, arguments, rest[close + 1 :])


def _shape(match: re.Match) -> Shape:
    sizes = tuple(int(size.lstrip("<=")) for size in match["sizes"].split(",") if size)
    space = _SPACE.search(match["layout"] or "")
    return Shape(match["type"], sizes, space is None or space.group(1) == "0")


def _closing(text: str, begin: int) -> int:
    """Returns the position of the bracket that closes the one at `begin`."""
    depth = 0
    for i in range(begin, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if not depth:
            return i
    raise ValueError(f"a bracket does not close: {text[begin : begin + 80]}")


def operand_shapes(computation: Computation, instruction: Instruction) -> list[Shape]:
    """Returns the shapes of an instruction's operands."""
    return [shape for name in instruction.operands for shape in computation[name].shapes]


def trip_count(program: Program, computation: Computation, loop: Instruction) -> int | None:
    """Returns the trip count of a `while` that counts from a constant to a constant in equal steps, otherwise None.

    All loops that JAX generates for `scan` and `fori_loop` are of this kind, as are the partitioner's loops for
    products whose factors arrive shard by shard.
    """
    stated = loop.option(r'"known_trip_count":\{"n":"(\d+)"')
    if stated:
        return int(stated)
    condition, body = (program[str(loop.called(name))] for name in ("condition", "body"))
    compare = condition[condition.root]
    if compare.opcode == "fusion":
        return None
    direction = compare.option(r"direction=(\w+)")
    if compare.opcode != "compare" or direction not in ("LT", "LE", "NE"):
        return None
    counter, limit = (_linear(program, condition, name) for name in compare.operands)
    if counter is None or limit is None or counter.element is None:
        return None
    (begin,) = computation[loop.name].operands
    first = _element(program, computation, begin, counter.element)
    bound = limit.offset if limit.element is None else _element(program, computation, begin, limit.element)
    after = _element_of_root(program, body, counter.element)
    if first is None or bound is None or after is None or after.element != counter.element or after.offset < 1:
        return None
    distance = bound - first - counter.offset + (direction == "LE")
    return max(0, -(-distance // after.offset))


@dataclasses.dataclass(frozen=True)
class _Linear:
    """Constant, or an element of the loop's tuple plus a constant."""

    element: int | None
    offset: int


def _linear(program: Program, computation: Computation, name: str) -> _Linear | None:
    instruction = computation[name]
    if instruction.opcode == "constant":
        return _Linear(None, int(instruction.arguments)) if re.fullmatch(r"-?\d+", instruction.arguments) else None
    if instruction.opcode == "get-tuple-element":
        source = computation[instruction.operands[0]]
        return _Linear(instruction.index, 0) if source.opcode == "parameter" else None
    if instruction.opcode in ("copy", "bitcast"):
        return _linear(program, computation, instruction.operands[0])
    if instruction.opcode == "add":
        left, right = (_linear(program, computation, operand) for operand in instruction.operands)
        if left is None or right is None or (left.element is not None and right.element is not None):
            return None
        element = right.element if left.element is None else left.element
        return _Linear(element, left.offset + right.offset)
    if instruction.opcode == "fusion":
        inner = program[str(instruction.called("calls"))]
        root = inner[inner.root]
        if root.opcode != "add":
            return None
        total = _Linear(None, 0)
        for operand in root.operands:
            source = inner[operand]
            outer = instruction.operands[source.index] if source.opcode == "parameter" else None
            part = _linear(program, computation, outer) if outer else _linear(program, inner, operand)
            if part is None or (part.element is not None and total.element is not None):
                return None
            total = _Linear(part.element if total.element is None else total.element, total.offset + part.offset)
        return total
    return None


def _element(program: Program, computation: Computation, name: str, index: int) -> int | None:
    """Returns the constant at an index of a tuple."""
    instruction = computation[name]
    if instruction.opcode in ("copy", "optimization-barrier"):
        return _element(program, computation, instruction.operands[0], index)
    if instruction.opcode != "tuple":
        return None
    value = _linear(program, computation, instruction.operands[index])
    return value.offset if value is not None and value.element is None else None


def _element_of_root(program: Program, body: Computation, index: int) -> _Linear | None:
    root = body[body.root]
    return _linear(program, body, root.operands[index]) if root.opcode == "tuple" else None
