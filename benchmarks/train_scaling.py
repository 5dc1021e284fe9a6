"""What a training step costs as the model gets wider, the rows longer, and the batch larger, beside the ideal line.

One of the three is doubled at a time. The compiler says how many operations the step takes and how many bytes it
moves; the step is then run, on rows without padding, and its CPU time taken, which other work on the machine changes
less than the wall time. *Ideal* is the first row's time, grown as the necessary arithmetic grows (`model/flops.py`): a
wider model that takes less than that uses the machine better, one that takes more has costs that grow faster than its
products. Longer rows hold the same number of tokens in fewer rows: what they add is attention, which the ideal leaves
out. See README.md.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from typing import NamedTuple

_parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
_parser.add_argument("--doublings", type=int, default=3, help="of each axis")
_parser.add_argument("--steps", type=int, default=5, help="timed steps of a setting; one more warms up")
_parser.add_argument("--threads", type=int, default=2)
_parser.add_argument("--largest", type=float, default=1e12, help="settings of more operations are compiled, not run")
_args = _parser.parse_args()

# XLA counts the cores it may use when it starts.
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: _args.threads])

import jax  # noqa: E402
import numpy as np  # noqa: E402

from configs import mp20_open  # noqa: E402
from crystal_jax.compile.analysis.cost import count  # noqa: E402
from crystal_jax.compile.analysis.hlo import parse  # noqa: E402
from crystal_jax.config import Experiment, from_config_dict  # noqa: E402
from crystal_jax.model.flops import train_flops_per_token  # noqa: E402
from crystal_jax.model.frozen_base.lora import count_parameters  # noqa: E402
from crystal_jax.sharding import make_mesh, put_batch  # noqa: E402
from crystal_jax.text.tokenizer import load_tokenizer  # noqa: E402
from crystal_jax.train.step import Batch, plan, setup  # noqa: E402

_HEAD_DIM = 32


class Setting(NamedTuple):
    """One size of each; heads have a fixed size, so a wider model has more of them."""

    width: int
    seq_len: int
    rows: int


_SMALLEST = Setting(width=64, seq_len=128, rows=8)


class Cost(NamedTuple):
    """Of one step: operations by formula and by compiler, bytes by the compiler, CPU seconds (None: not run)."""

    parameters: int
    needed: float
    compiled: float
    moved: float
    seconds: float | None


def main() -> None:
    print(f"{_args.threads} threads, jax {jax.__version__}, load average {os.getloadavg()[0]:.2f}")
    for axis, settings in axes():
        print(f"\n{axis} doubles")
        print(f"{'':>7}{'parameters':>12}{'needed':>10}{'compiler':>10}{'ratio':>7}{'moved':>9}{'CPU':>9}{'ideal':>9}")
        print(f"{'':>7}{'':>12}{'GFLOP':>10}{'GFLOP':>10}{'':>7}{'GB':>9}{'s':>9}{'s':>9}")
        first = None
        for setting in settings:
            cost = measure(experiment_of(setting))
            first = first or cost
            report(getattr(setting, axis), cost, first)


def axes() -> Iterator[tuple[str, list[Setting]]]:
    """The settings along each axis, the smallest first."""
    factors = [2**i for i in range(_args.doublings + 1)]
    yield "width", [_SMALLEST._replace(width=_SMALLEST.width * f) for f in factors]
    tokens = _SMALLEST.rows * _SMALLEST.seq_len
    yield "seq_len", [_SMALLEST._replace(seq_len=n, rows=tokens // n) for n in (_SMALLEST.seq_len * f for f in factors)]
    yield "rows", [_SMALLEST._replace(rows=_SMALLEST.rows * f) for f in factors]


def experiment_of(setting: Setting) -> Experiment:
    """The shipped small model in another size, on one device."""
    config = mp20_open.get_config().to_dict()
    heads = setting.width // _HEAD_DIM
    config["model"] |= dict(embed_dim=setting.width, mlp_dim=4 * setting.width, num_heads=heads, num_kv_heads=heads)
    config["data"] |= dict(seq_len=setting.seq_len, batch_size=setting.rows, shards=1)
    config["optimizer"]["name"] = "adamw"  # Muon's own products are no part of the formula
    config["mesh"] = dict(data=1, fsdp=1, tensor=1)
    return from_config_dict(config, vocab_size=load_tokenizer(config["tokenizer"]["name"]).vocab_size)


def measure(experiment: Experiment) -> Cost:
    """Compiles a step, and runs it unless it is too large."""
    mesh = make_mesh(experiment.mesh, jax.devices()[:1])
    planned = plan(experiment, mesh)
    compiled = planned.train_step.lower(planned.state, planned.frozen, planned.batch).compile()
    counted = count(parse(compiled.as_text()))
    assert not counted.unknown_loops
    assert not counted.kernels  # whose operations would be missing
    tokens = experiment.data.batch_size * experiment.data.seq_len
    needed = tokens * train_flops_per_token(experiment.model, experiment.lora)
    seconds = cpu_seconds(experiment, mesh) if needed <= _args.largest else None
    return Cost(count_parameters(planned.state.params), needed, counted.flops, counted.bytes, seconds)


def cpu_seconds(experiment: Experiment, mesh: jax.sharding.Mesh) -> float:
    """Median CPU time of a step, of all threads."""
    parts = setup(experiment, mesh)
    state, batch, times = parts.state, put_batch(full_rows(experiment), mesh), []
    for _ in range(1 + _args.steps):
        begin = time.process_time()
        state, metrics = parts.train_step(state, parts.frozen, batch)
        jax.block_until_ready((state, metrics))
        times.append(time.process_time() - begin)
    return float(np.median(times[1:]))


def full_rows(experiment: Experiment) -> Batch:
    """Rows of one example each, as long as they are."""
    shape = (experiment.data.batch_size, experiment.data.seq_len)
    tokens = np.random.default_rng(0).integers(0, experiment.model.vocab_size, shape).astype(np.int32)
    return {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, axis=1),
        "weights": np.ones(shape, np.float32),
        "positions": np.tile(np.arange(shape[1], dtype=np.int32), (shape[0], 1)),
        "segments": np.ones(shape, np.int32),
    }


def report(value: int, cost: Cost, first: Cost) -> None:
    """One line of a table."""
    line = f"{value:>7}{cost.parameters:>12,}{cost.needed / 1e9:>10.2f}{cost.compiled / 1e9:>10.2f}"
    line += f"{cost.compiled / cost.needed:>7.2f}{cost.moved / 1e9:>9.3f}"
    if cost.seconds is not None and first.seconds is not None:
        line += f"{cost.seconds:>9.3f}{first.seconds * cost.needed / first.needed:>9.3f}"
    print(line, flush=True)


if __name__ == "__main__":
    main()
