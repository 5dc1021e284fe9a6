"""Formats a report as a table for the terminal."""

from __future__ import annotations

from crystal_jax.compile.analysis.cost import Cost
from crystal_jax.compile.aot_report import Estimate, Floors, Report
from crystal_jax.compile.chips import GPU_MEMORY_FRACTION

_GIB = 2**30


def show(report: Report) -> str:
    """Formats a report in some twenty lines; bytes and operations are those of one chip."""
    mesh = ", ".join(f"{name} {size}" for name, size in report.mesh.items())
    slices = f"{report.num_slices} x " if report.num_slices > 1 else ""
    accumulated = f" in {report.accumulate} micro-batches" if report.accumulate > 1 else ""
    rows = [
        ("mesh", mesh),
        ("base", report.base + (f", cache {report.cache}" if report.what == "decode" else "")),
        ("batch", f"{report.rows} rows x {report.length}{accumulated}"),
        ("compiled in", f"{report.compile_seconds:.0f} s, optimisation level {report.optimization_level}"),
        ("HBM: arguments", _gib(report.memory["arguments"])),
        ("HBM: temporaries", _gib(report.memory["temporaries"])),
    ]
    devices = "chips"
    if report.cost is not None and report.estimate is not None:
        rows += _counted(report, report.cost, report.estimate)
    elif report.floors is not None:
        devices = "GPUs"
        rows += _bounded(report, report.floors)
    head = f"{report.config} {report.what} on {slices}{report.topology} ({report.chips} {devices})"
    return "\n".join([head, *(f"  {name:<20}{value}" for name, value in rows)])


def _counted(report: Report, cost: Cost, estimate: Estimate) -> list[tuple[str, str]]:
    """Returns the rows for a TPU's program."""
    memory = report.memory
    rows = [
        ("HBM: peak", f"{_gib(memory['peak'])} of {memory['limit'] / _GIB:.2f}"),
        ("products", f"{cost.flops / 1e12:.3f} TFLOP, {cost.flops / report.expected_flops:.3f} of the equations'"),
        ("HBM traffic", _gib(cost.bytes) + _against(cost.bytes, report.expected_bytes)),
    ]
    for kind, traffic in sorted(cost.collectives.items()):
        between = f", {_gib(traffic.between_slices)} between slices" if traffic.between_slices else ""
        rows.append((kind, f"{_gib(traffic.bytes)} received in {traffic.count:,} calls{between}"))
    if cost.kernels:
        rows.append(("kernels", f"{cost.kernels:,} calls, whose products are not counted"))
    if cost.unknown_loops:
        rows.append(("loops", f"{cost.unknown_loops} of unknown length, counted once"))
    parts = {"products": estimate.compute, "HBM": estimate.memory, "links": estimate.links, "network": estimate.network}
    shown = ", ".join(f"{name} {1e3 * t:.1f}" for name, t in parts.items() if t)
    rows.append(("estimated step", f"{1e3 * estimate.step:.1f} ms, the longest of: {shown}"))
    if estimate.mfu is not None and estimate.crystals_per_hour is not None:
        rows.append(("estimated MFU", f"{estimate.mfu:.0%}"))
        rows.append(("estimated crystals", f"{estimate.crystals_per_hour:,.0f} an hour"))
    return rows


def _bounded(report: Report, floors: Floors) -> list[tuple[str, str]]:
    """Returns the rows for a GPU's program, for which the compiler states only the memory."""
    memory = report.memory
    rows = []
    if memory["beside"]:
        rows.append(("HBM: beside", f"{_gib(memory['beside'])} of weights and cache that sampling holds meanwhile"))
    limit = f"{memory['limit'] / _GIB:.2f}, {GPU_MEMORY_FRACTION:.0%} of the card's"
    rows += [
        ("HBM: needed", f"{_gib(memory['needed'])} of {limit}"),
        ("products", f"{report.expected_flops / 1e12:.3f} TFLOP by the equations; the program's are not counted"),
    ]
    if report.expected_bytes is not None:
        rows.append(("weights and cache", _gib(report.expected_bytes)))
    steps = {"train": "step", "prefill": "prompt", "decode": "step with a full cache"}
    fastest = f"at the card's peak; no {steps[report.what]} is faster"
    rows.append(("floor: products", f"{1e3 * floors.compute:.1f} ms {fastest}"))
    if floors.memory is not None:
        rows.append(("floor: HBM", f"{1e3 * floors.memory:.1f} ms {fastest}"))
    return rows


def _gib(number: float) -> str:
    return f"{number / _GIB:.2f} GiB"


def _against(number: float, needed: float | None) -> str:
    return "" if needed is None else f", {number / needed:.2f} of weights and cache"
