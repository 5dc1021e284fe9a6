"""A report as a table to read in a terminal."""

from __future__ import annotations

from crystal_jax.compile.case import Report

_GIB = 2**30


def show(report: Report) -> str:
    """Some twenty lines; bytes and operations are those of one chip."""
    memory, cost, estimate = report.memory, report.cost, report.estimate
    mesh = ", ".join(f"{name} {size}" for name, size in report.mesh.items())
    slices = f"{report.num_slices} x " if report.num_slices > 1 else ""
    accumulated = f" in {report.accumulate} micro-batches" if report.accumulate > 1 else ""
    rows = [
        ("mesh", mesh),
        ("base", report.base + (f", cache {report.cache}" if report.what == "decode" else "")),
        ("batch", f"{report.rows} rows x {report.length}{accumulated}"),
        ("compiled in", f"{report.compile_seconds:.0f} s, optimisation level {report.optimization_level}"),
        ("HBM: arguments", _gib(memory["arguments"])),
        ("HBM: temporaries", _gib(memory["temporaries"])),
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
    head = f"{report.config} {report.what} on {slices}{report.topology} ({report.chips} chips)"
    return "\n".join([head, *(f"  {name:<20}{value}" for name, value in rows)])


def _gib(number: float) -> str:
    return f"{number / _GIB:.2f} GiB"


def _against(number: float, needed: float | None) -> str:
    return "" if needed is None else f", {number / needed:.2f} of weights and cache"
