"""One optimizer step of our LoRA training: real tokens a second, MFU, peak memory.

The batches are those of `configs/llama2_*.py:gpu`, packed from real crystals beforehand; the weights are random, of the
real shapes. Padding is computed and not counted.
"""

from __future__ import annotations

import time

import jax
import numpy as np

from benchmarks.gpu.case import Case, data_sheet
from benchmarks.gpu.models import experiment_of, one_device, peak_memory, random_like
from crystal_jax.model.flops import train_flops_per_token
from crystal_jax.sharding import put_batch
from crystal_jax.train.step import plan

_STEPS = 5


def main() -> None:
    case = Case(__doc__, size="7b", attention="einsum", rows=0, base="none", targets="q,v", keep_products=False)
    options = case.options
    experiment = experiment_of(
        options.size,
        dry_run=case.dry_run,
        base=options.base,
        targets=options.targets,
        attention=options.attention,
        keep_products=options.keep_products,
        rows=options.rows,
    )
    mesh = one_device(experiment)
    planned = plan(experiment, mesh)
    frozen = random_like(planned.frozen, quantization=options.base)
    where = jax.tree.map(lambda leaf: leaf.sharding, planned.state)
    state = jax.jit(planned.begin, out_shardings=where, donate_argnums=0)(random_like(planned.state.params))
    packed = np.load(case.bundle / "packed_1024.npz")
    rows = experiment.data.batch_size
    batches = [put_batch({name: packed[name][i, :rows] for name in packed.files}, mesh) for i in range(2)]
    case.answer.put("rows", f"{rows} x {experiment.data.seq_len} in {experiment.optimizer.accumulate} micro-batches")

    begin = time.perf_counter()
    step = planned.train_step.lower(state, frozen, batches[0]).compile()
    case.answer.put("compile", time.perf_counter() - begin, "s")
    rates, losses = [], []
    for i in range(1 + (1 if case.dry_run else _STEPS)):
        batch = batches[i % len(batches)]
        begin = time.perf_counter()
        state, metrics = step(state, frozen, batch)
        losses.append(float(metrics["loss"]))  # waits for the step
        if i:
            rates.append(float(metrics["tokens"]) / (time.perf_counter() - begin))
            report(case, experiment, rates)
        if not case.has_time(time.perf_counter() - begin + 5):
            break
    if not np.isfinite(losses).all():
        raise SystemExit(f"losses are not finite: {losses}")
    case.answer.put("losses", losses)


def report(case: Case, experiment, rates: list[float]) -> None:
    """States the figures of the steps so far."""
    device = jax.devices()[0]
    case.answer.put("tokens_per_s", rates, "real tokens/s")
    peak, _ = data_sheet(device.device_kind)
    if peak:
        flops = train_flops_per_token(experiment.model, experiment.lora)
        case.answer.put("mfu", [100 * flops * rate / peak / 1e12 for rate in rates], "%")
    if (memory := peak_memory(device)) is not None:
        case.answer.put("peak_memory", memory, "GiB")


if __name__ == "__main__":
    main()
