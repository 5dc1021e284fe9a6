"""`gpu.json`: what was measured on which device, written after every case so that nothing measured is lost."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crystal_jax.storage.files import write_text

PACKAGES = ("crystal-jax", "jax", "jaxlib", "jax-cuda13-plugin", "flax", "optax", "torch", "transformers", "peft")


def figure(values: float | Sequence[float], unit: str) -> dict[str, Any]:
    """Returns the median of repeated measurements, with the smallest, the largest and their number."""
    array = np.atleast_1d(np.asarray(values, float))
    return {
        "value": float(np.median(array)),
        "min": float(array.min()),
        "max": float(array.max()),
        "n": len(array),
        "unit": unit,
    }


def read(path: Path) -> dict[str, Any]:
    """Returns the results so far; an empty set of them if there is no file yet."""
    return json.loads(path.read_text()) if path.is_file() else {"device": None, "versions": {}, "cases": {}}


def record(path: Path, name: str, outcome: dict[str, Any]) -> None:
    """Adds the outcome of a case: `status` (measured, failed, out of time), `seconds`, and what it found."""
    results = read(path)
    results["cases"][name] = {
        "measured_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **outcome,
    }
    write_text(path, json.dumps(results, indent=1) + "\n")


def describe_machine(path: Path, device: dict[str, Any]) -> None:
    """States the device, the driver, the processor and the versions of packages."""
    results = read(path)
    results["device"] = device | {"driver": _driver(), "processor": _processor(), "python": platform.python_version()}
    results["versions"] = {name: version for name in PACKAGES if (version := _version(name))}
    write_text(path, json.dumps(results, indent=1) + "\n")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
