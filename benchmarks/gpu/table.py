"""Prints `gpu.json` as the tables and targets of docs/GPU.md; what was not measured is said so.

python -m benchmarks.gpu.table runs/gpu/gpu.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.gpu.cases import CASES, named

PAPER = {"7b": 67_814, "13b": 24_100, "70b": 8_774}  # crystals an hour, Gruver et al., table 4
NOT_MEASURED = "not measured yet"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    print(tables(json.loads(parser.parse_args().results.read_text())))


def tables(results: dict[str, Any]) -> str:
    """Markdown: the device, a table a part, and the targets."""
    device = results["device"] or {}
    lines = [f"Device: {device.get('kind', 'none')} ({device.get('driver')}), processor {device.get('processor')}"]
    lines += [", ".join(f"{name} {version}" for name, version in results["versions"].items()), ""]
    for part in dict.fromkeys(case.part for case in CASES):
        lines += [f"### {part}", "", "| case | result |", "| --- | --- |"]
        lines += [f"| `{case.name}` | {_cell(results, case.name)} |" for case in named(part)]
        lines.append("")
    lines += ["### Targets", "", "| target | result |", "| --- | --- |"]
    lines += [f"| {target} | {result} |" for target, result in targets(results)]
    return "\n".join(lines) + "\n"


def targets(results: dict[str, Any]) -> list[tuple[str, str]]:
    """Each target of the GPU benchmark with what was found: met, missed, or not measured."""
    ours = max(_values(results, "train/7b-bf16", "tokens_per_s", without="peer"), default=None)
    peer = max(_values(results, "train/7b-bf16-peer", "tokens_per_s", without="qkvo"), default=None)
    mfu = max(_values(results, "train/7b-bf16", "mfu", without="peer"), default=None)
    written = max(_values(results, "sample/7b", "crystals_per_hour", without="peer"), default=None)
    generated = max(_values(results, "sample/7b-peer", "crystals_per_hour"), default=None)
    bandwidth = max(_values(results, "sample/7b-step", "bandwidth"), default=None)
    return [
        ("LoRA step, 7B, bf16: 1.5 x Hugging Face + PEFT in real tokens/s", _judge(_ratio(ours, peer), 1.5, " x")),
        ("LoRA step, 7B, bf16: 45 % MFU", _judge(mfu, 45, " %")),
        ("sampling, 7B: 10 x `generate`", _judge(_ratio(written, generated), 10, " x")),
        ("decode step, 7B, few slots: 60 % of the bandwidth limit", _judge(bandwidth, 60, " %")),
        ("sampling, 7B: 3 x the paper's 67,814 crystals/h", _judge(_ratio(written, PAPER["7b"]), 3, " x")),
        ("numbers within the tolerance of their type", _correct(results)),
    ]


def _cell(results: dict[str, Any], name: str) -> str:
    outcome = results["cases"].get(name)
    if outcome is None or outcome["status"] == "not begun":
        return NOT_MEASURED
    figures = [
        f"{label} {value['value']:,.4g} {value['unit']}" + _spread(value)
        for label, value in outcome.items()
        if isinstance(value, dict) and "unit" in value
    ]
    facts = [str(outcome[name]) for name in ("rows", "samples", "exported") if name in outcome]
    state = [] if outcome["status"] == "measured" else [f"**{outcome['status']}**"]
    return "; ".join(state + figures + facts)


def _spread(value: dict[str, Any]) -> str:
    return f" ({value['min']:,.4g}–{value['max']:,.4g}, n={value['n']})" if value["n"] > 1 else ""


def _values(results: dict[str, Any], prefix: str, figure: str, *, without: str = "\0") -> list[float]:
    """The medians of a figure in the cases whose names begin so."""
    return [
        value["value"]
        for name, outcome in results["cases"].items()
        if name.startswith(prefix) and without not in name
        for label, value in outcome.items()
        if label.startswith(figure) and isinstance(value, dict)
    ]


def _ratio(ours: float | None, other: float | None) -> float | None:
    return None if ours is None or other is None else ours / other


def _judge(found: float | None, target: float, unit: str) -> str:
    if found is None:
        return NOT_MEASURED
    return f"{'met' if found >= target else '**missed**'}: {found:,.3g}{unit}"


def _correct(results: dict[str, Any]) -> str:
    outcome = results["cases"].get("correct/numbers", {"status": "not begun"})
    return {"measured": "met", "not begun": NOT_MEASURED}.get(outcome["status"], "**missed**")


if __name__ == "__main__":
    main()
