"""Counts the cost of a compiled program on one chip: products, HBM traffic, and collectives.

Loop bodies count as often as they run. Products are counted in `products.py`, HBM traffic in `hbm_traffic.py`.
"""

from __future__ import annotations

import dataclasses
import re

from crystal_jax.compile.analysis.device_groups import replica_groups, source_target_pairs
from crystal_jax.compile.analysis.hbm_traffic import bytes_in_hbm, hbm_bytes
from crystal_jax.compile.analysis.hlo import COLLECTIVES, Computation, Instruction, Program, operand_shapes, trip_count
from crystal_jax.compile.analysis.products import product_flops, splash_flops


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
                self.cost.bytes += times * (
                    bytes_in_hbm(operand_shapes(computation, instruction)) + bytes_in_hbm(instruction.shapes)
                )
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
