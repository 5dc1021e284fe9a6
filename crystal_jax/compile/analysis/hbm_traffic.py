"""Counts the bytes that an instruction of a compiled program reads from and writes to HBM.

Data inside a fused operation causes no memory traffic. For a sliced array only the slice is read. An array updated in
place does not count as rewritten.
"""

from __future__ import annotations

from collections.abc import Iterable

from crystal_jax.compile.analysis.hlo import COLLECTIVES, Computation, Instruction, Program, Shape, operand_shapes

# Renamed or regrouped values, and ends of operations that are counted at their start.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"}
_FREE |= {"optimization-barrier", "add-dependency", "while", "call", "conditional"}
_SLICES = {"dynamic-slice", "slice", "gather"}
_ELSEWHERE = {*COLLECTIVES, "custom-call"}  # counted elsewhere: a collective within a fusion, for instance
_SEE_THROUGH = {"bitcast", "reshape", "convert", "copy", "transpose"}


def hbm_bytes(program: Program, computation: Computation, instruction: Instruction) -> int:
    """Returns the bytes that an instruction reads from and writes to HBM."""
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith("-done"):
        return 0
    shapes = operand_shapes(computation, instruction)
    if opcode == "fusion":
        return _fusion_bytes(program, computation, instruction)
    if opcode in ("dynamic-slice", "slice", "gather"):
        read = min(shapes[0].bytes, bytes_in_hbm(instruction.shapes)) if shapes[0].in_hbm else 0
        return read + bytes_in_hbm(shapes[1:]) + bytes_in_hbm(instruction.shapes)
    if opcode in ("dynamic-update-slice", "scatter"):
        update = shapes[1 if opcode == "dynamic-update-slice" else 2]
        return (shapes[0].in_hbm + update.in_hbm) * update.bytes
    if opcode in ("slice-start", "dynamic-slice-start"):  # the tuple is (source, target, context)
        target = instruction.shapes[1]
        return (shapes[0].in_hbm + target.in_hbm) * target.bytes
    if opcode == "copy-start":  # the tuple is (target, source, context)
        return bytes_in_hbm(instruction.shapes[:1]) + bytes_in_hbm(shapes)
    if opcode.endswith("-start"):
        # The tuples repeat the operands.
        return max(bytes_in_hbm(instruction.shapes) - bytes_in_hbm(shapes), 0) + bytes_in_hbm(shapes)
    return bytes_in_hbm(shapes) + bytes_in_hbm(instruction.shapes)


def bytes_in_hbm(shapes: Iterable[Shape]) -> int:
    """Returns the bytes of those arrays that are in HBM."""
    return sum(shape.bytes for shape in shapes if shape.in_hbm)


def _fusion_bytes(program: Program, computation: Computation, fusion: Instruction) -> int:
    inner = program[str(fusion.called("calls"))]
    total = 0
    for number, name in enumerate(fusion.operands):
        shapes = computation[name].shapes
        if len(shapes) == 1 and shapes[0].in_hbm:
            total += _read(program, inner, inner.parameters[number].name, shapes[0].bytes)
        else:
            total += bytes_in_hbm(shapes)
    roots = inner[inner.root]
    names = roots.operands if roots.opcode == "tuple" else (roots.name,)
    if len(names) != len(fusion.shapes):
        return total + bytes_in_hbm(fusion.shapes)
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
