"""Measures the ceilings of the card, a large bf16 product and a copy of random data, and records the versions."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp

from benchmarks.gpu.case import Case
from benchmarks.gpu.results import describe_machine


def main() -> None:
    case = Case(__doc__)
    device = jax.devices()[0]
    stats = device.memory_stats() or {}
    memory = {"memory_for_jax_gib": stats["bytes_limit"] / 2**30} if "bytes_limit" in stats else {}
    describe_machine(case.output / "gpu.json", {"kind": device.device_kind, "platform": device.platform, **memory})
    n, elements = (256, 2**20) if case.dry_run else (8192, 2**31)
    a, b = (jax.random.normal(jax.random.key(seed), (n, n), jnp.bfloat16) for seed in (0, 1))
    product = jax.jit(jnp.matmul)
    case.answer.put("product", [2e-12 * n**3 / seconds for seconds in times(product, a, b)], "TFLOP/s in bf16")
    big = jax.jit(lambda: jnp.arange(elements, dtype=jnp.uint32).astype(jnp.bfloat16))()
    # Read and written once each.
    copy = jax.jit(lambda x: x + 1)
    case.answer.put("copy", [2e-9 * big.nbytes / seconds for seconds in times(copy, big)], "GB/s read and written")


def times(function, *arguments, repeats: int = 10, calls: int = 5) -> list[float]:
    """Seconds of a call, repeatedly; several calls are in flight, so that starting them is not measured."""
    jax.block_until_ready(function(*arguments))
    found = []
    for _ in range(repeats):
        begin = time.perf_counter()
        results = [function(*arguments) for _ in range(calls)]
        jax.block_until_ready(results)
        found.append((time.perf_counter() - begin) / calls)
    return found


if __name__ == "__main__":
    main()
