"""Measures the parts of the GPU benchmark one after the other, each case in a process of its own.

A case that was measured before is left out, so the same command goes on where it stopped; one that failed is tried
again. No case is begun that the budget may not hold, and none outlives it. What was found is in `gpu.json` at once.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.gpu.cases import CASES, DEFAULT_PARTS, PARTS, Case
from benchmarks.gpu.results import read, record

_GRACE = 15.0  # seconds of the budget that are kept for ending in time
# Of the card's memory: the default of JAX, 75 %, is for machines on which others work, too.
_MEMORY = "0.92"
_LAST_LINES = 12  # of what a failed case printed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True, help="folder made by `python -m benchmarks.gpu.bundle`")
    parser.add_argument("--output", type=Path, required=True, help="folder for gpu.json and for what is trained")
    parser.add_argument("--budget_seconds", type=float, default=540.0)
    parser.add_argument("--parts", default=",".join(DEFAULT_PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--only", default="", help="names of cases, separated by commas")
    parser.add_argument("--dry_run", action="store_true", help="toy models, on whatever device there is")
    args = parser.parse_args()
    begin = time.monotonic()
    if unknown := set(args.parts.split(",")) - set(PARTS):
        parser.error(f"--parts: no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    names = set(args.only.split(",")) - {""}
    if unknown := names - {case.name for case in CASES}:
        parser.error(f"--only: no case {', '.join(sorted(unknown))}; there are {', '.join(c.name for c in CASES)}")
    if not (args.bundle / "manifest.json").is_file():
        parser.error(f"--bundle={args.bundle} has no manifest.json; make it with: python -m benchmarks.gpu.bundle")
    args.output.mkdir(parents=True, exist_ok=True)
    results = args.output / "gpu.json"
    parts = args.parts.split(",")
    chosen = [case for case in CASES if (case.name in names if names else case.part in parts)]
    if args.dry_run and not names:
        chosen = [case for case in chosen if case.rehearsed]
    failed = 0
    for case in chosen:
        if read(results)["cases"].get(case.name, {}).get("status") == "measured":
            print(f"{case.name}: measured before", flush=True)
            continue
        left = args.budget_seconds - (time.monotonic() - begin) - _GRACE
        if left < case.seconds and not args.dry_run:
            print(f"{case.name}: not begun; it may take {case.seconds} s and {max(left, 0):.0f} s are left", flush=True)
            record(results, case.name, {"status": "not begun", "reason": f"{left:.0f} s were left"})
            continue
        outcome = run_case(case, args.bundle, args.output, seconds=min(left, case.seconds), dry_run=args.dry_run)
        record(results, case.name, outcome)
        failed += outcome["status"] != "measured"
        print(f"{case.name}: {_line(outcome)}", flush=True)
    print(f"{results}: {time.monotonic() - begin:.0f} s")
    return 1 if failed else 0


def run_case(case: Case, bundle: Path, output: Path, *, seconds: float, dry_run: bool) -> dict:
    """Runs one case, and returns its outcome whatever comes of it."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        module = f"benchmarks.gpu.{case.module}"
        options = [f"--bundle={bundle}", f"--output={output}", f"--answer={answer}", f"--seconds={seconds:.0f}"]
        options += [f"--{name}={value}" for name, value in case.settings.items()]
        begin = time.monotonic()
        if dry_run:  # in this process: importing is most of the time of a toy
            _run_here(module, [*options, "--dry_run"])
            return {
                "status": "measured",
                "seconds": round(time.monotonic() - begin, 1),
                **json.loads(answer.read_text()),
            }
        command = [sys.executable, "-m", module, *options]
        environment = {"XLA_PYTHON_CLIENT_MEM_FRACTION": _MEMORY, "TF_CPP_MIN_LOG_LEVEL": "2"} | os.environ
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=seconds, check=False, env=environment
            )
            said = done.stderr.splitlines() + done.stdout.splitlines()
            status = "measured" if done.returncode == 0 and answer.is_file() else "failed"
        except subprocess.TimeoutExpired as expired:
            said = [str(expired)]
            status = "out of time"
        # Cases write what they have found as they go, so a case that was cut off has its first figures.
        found = json.loads(answer.read_text()) if answer.is_file() else {}
        outcome = {"status": status, "seconds": round(time.monotonic() - begin, 1), **found}
        return outcome if status == "measured" else outcome | {"reason": said[-_LAST_LINES:]}


def _run_here(module: str, options: list[str]) -> None:
    """Runs a module with options; what it prints is printed, and an error ends the rehearsal with its traceback."""
    before, sys.argv = sys.argv, [module, *options]
    try:
        runpy.run_module(module, run_name="__main__")
    finally:
        sys.argv = before


def _line(outcome: dict) -> str:
    """The status of a case and its figures."""
    parts = [f"{outcome['status']} in {outcome['seconds']} s"]
    for name, value in outcome.items():
        if isinstance(value, dict) and "value" in value:
            parts.append(f"{name} {value['value']:,.4g} {value['unit']}")
    if outcome["status"] != "measured":
        parts += outcome.get("reason", [])[-1:]
    return "; ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
