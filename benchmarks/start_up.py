"""Seconds until the first, the 20th, the 256th and the 1,000th crystal of `sample`, against an earlier version.

Each version runs in processes of its own, in turns: with empty caches (cold), and with the caches of its own cold run
(warm). The parent watches `samples.jsonl` grow, so that the versions need no common code.

    git worktree add /tmp/before v0.1.0
    python -m benchmarks.start_up --before=/tmp/before --counts=20,256,1000
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.machine import processor

MARKS = (1, 20, 256, 1000)  # numbers of crystals after which the time is reported
_JOB = """
import collections, json, sys, time
begin = time.time()
import jax, flax, pymatgen.core
imported = time.time() - begin
seconds, programs = collections.Counter(), collections.Counter()
def note(name, duration, **_):
    seconds[name.rsplit("/", 1)[-1]] += duration
    programs[name.rsplit("/", 1)[-1]] += 1
jax.monitoring.register_event_duration_secs_listener(note)
from crystal_jax.sample.run import sample
sample("crystal-tiny", output=sys.argv[1], num_samples=int(sys.argv[2]))
print(json.dumps({"imports": imported, "seconds": seconds, "programs": programs}))
"""
_DURATIONS = {
    "trace": "jaxpr_trace_duration",
    "lower": "jaxpr_to_mlir_module_duration",
    "compile": "backend_compile_duration",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="a checkout of the earlier version")
    parser.add_argument("--counts", default="20,1000", help="sizes of the jobs")
    parser.add_argument("--rounds", type=int, default=2, help="warm runs of each version and size")
    arguments = parser.parse_args()
    trees = {"now": Path(__file__).resolve().parents[1]}
    if arguments.before:
        trees["before"] = arguments.before.resolve()
    print(processor())
    with tempfile.TemporaryDirectory() as scratch:
        for count in map(int, arguments.counts.split(",")):
            compare(trees, count, Path(scratch), rounds=arguments.rounds)


def compare(trees: dict[str, Path], count: int, scratch: Path, *, rounds: int) -> None:
    """Prints the times of one job with each version, cold and warm, and their ratios."""
    print(f"\n{count} crystals")
    caches = {name: scratch / f"cache-{name}-{count}" for name in trees}
    found = {("cold", name): [run(tree, count, caches[name], scratch)] for name, tree in trees.items()}
    for _ in range(rounds):
        for name, tree in trees.items():
            found.setdefault(("warm", name), []).append(run(tree, count, caches[name], scratch))
    for (state, name), runs in found.items():
        last = runs[-1]
        marks = "  ".join(f"{mark}: {median(runs, mark):6.1f} s" for mark in MARKS if mark <= count)
        parts = "  ".join(f"{part} {last['seconds'].get(key, 0):.1f} s" for part, key in _DURATIONS.items())
        programs = last["programs"].get("backend_compile_duration", 0)
        print(f"{state} {name:<7} crystal {marks}  whole job {median(runs, 'whole'):6.1f} s")
        print(f"{'':14}imports {last['imports']:.1f} s  {parts}  {programs} programs by jax.jit")
    if "before" in trees:
        for state in ("cold", "warm"):
            marks = [mark for mark in (*MARKS, "whole") if mark == "whole" or mark <= count]
            ratios = (median(found[state, "before"], m) / median(found[state, "now"], m) for m in marks)
            print(f"{state} ratio   " + "  ".join(f"{m}: {r:.2f}" for m, r in zip(marks, ratios, strict=True)))


def median(runs: list[dict], mark: int | str) -> float:
    """Returns the median of a time over runs."""
    return statistics.median(run["marks"][mark] for run in runs)


def run(tree: Path, count: int, cache: Path, scratch: Path) -> dict:
    """Returns the times of one job, in seconds from the start of its process."""
    output = Path(tempfile.mkdtemp(dir=scratch)) / "samples"
    environment = os.environ | {
        "PYTHONPATH": str(tree),
        "CRYSTAL_JAX_CACHE": str(cache),
        "JAX_COMPILATION_CACHE_DIR": str(cache / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        "JAX_PLATFORMS": "cpu",
    }
    start = time.monotonic()
    command = [sys.executable, "-c", _JOB, str(output), str(count)]
    log = scratch / "stderr"
    with log.open("w") as errors:
        job = subprocess.Popen(command, cwd=tree, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
        marks: dict[int | str, float] = {}
        path = output / "samples.jsonl"
        while job.poll() is None:
            lines = path.read_bytes().count(b"\n") if path.exists() else 0
            marks |= {mark: time.monotonic() - start for mark in MARKS if lines >= mark and mark not in marks}
            time.sleep(0.05)
    if job.returncode:
        raise SystemExit(f"the job of {tree} failed:\n{log.read_text()}")
    marks["whole"] = time.monotonic() - start
    marks |= {mark: marks["whole"] for mark in MARKS if mark <= count and mark not in marks}
    assert job.stdout is not None
    return json.loads(job.stdout.read().splitlines()[-1]) | {"marks": marks}


if __name__ == "__main__":
    main()
