"""Tokens a second of our training step, of Hugging Face's `Trainer`, and the share of the machine's matrix product.

Both train the same LLaMA from the same weights on the same crystals, one optimizer step on the same examples each: we
pack them into rows, the peer pads them to the longest. Ours includes the reading, augmenting and tokenising of the
crystals; the peer finds them ready. Rounds of the two and of a bare matrix product take turns, so that a machine that
slows down slows all of them. See README.md for what exactly is counted.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

_parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
_parser.add_argument("--data", type=Path, required=True, help="a prepared data set")
_parser.add_argument("--rounds", type=int, default=5)
_parser.add_argument("--steps", type=int, default=5, help="timed steps of a round; one more warms up")
_parser.add_argument("--threads", type=int, default=2)
_args = _parser.parse_args()

# Both libraries count the cores they may use when they are imported.
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: _args.threads])
os.environ["OMP_NUM_THREADS"] = str(_args.threads)

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks.peer import Ours, begin, hugging_face_twin, peer_loss, peer_seconds, with_adapters  # noqa: E402
from benchmarks.peer_examples import unpack  # noqa: E402
from configs import mp20_open  # noqa: E402
from crystal_jax.config import Experiment, LlamaConfig, from_config_dict  # noqa: E402
from crystal_jax.data.examples import ExampleMaker  # noqa: E402
from crystal_jax.data.mp20 import open_split  # noqa: E402
from crystal_jax.data.pipeline import Batch, fitting, train_batches  # noqa: E402
from crystal_jax.model.frozen_base.lora import count_parameters  # noqa: E402
from crystal_jax.text.tokenizer import load_tokenizer  # noqa: E402

_MODEL = dict(embed_dim=384, mlp_dim=1024, num_layers=6, num_heads=6, num_kv_heads=6, head_dim=64)
_ROW = dict(seq_len=128, batch_size=24, packing_bins=64)
_LORA = dict(rank=8, alpha=32.0, targets=("q", "v"))
_GEMM_SIZE = 2048


def main() -> None:
    begin(_args.threads)
    for lora in (dict(rank=0, alpha=1.0, targets=()), _LORA):
        compare(experiment_with(lora))
    print(f"\nload average at the end {os.getloadavg()[0]:.2f} (our own {_args.threads} threads are in it)")


def experiment_with(lora: dict) -> Experiment:
    """The shipped configuration with a model of 11 million parameters."""
    config = mp20_open.get_config().to_dict()
    config["model"] |= _MODEL
    config["data"] |= _ROW | {"directory": str(_args.data)}
    config["lora"] = lora
    config["train"]["token_features"] = 0.0  # adapters leave the embedding as it is
    config["optimizer"]["name"] = "adamw"  # the peer's
    return from_config_dict(config, vocab_size=load_tokenizer(config["tokenizer"]["name"]).vocab_size)


class Round(NamedTuple):
    """What one round measured: seconds for our steps, for the peer's, and for one matrix product."""

    ours: float
    peer: float
    gemm: float
    tokens: int
    useful_flops: float
    all_flops: float


def compare(experiment: Experiment) -> None:
    """Measures one way to train and prints its table."""
    maker = ExampleMaker(load_tokenizer(experiment.tokenizer.name), experiment.text, experiment.task)
    records, _ = fitting(open_split(_args.data, "train"), maker, seq_len=experiment.data.seq_len)
    ours = Ours(experiment, records, maker)
    # The same batches once more, for the peer.
    stream = train_batches(records, maker, experiment.data)
    model = hugging_face_twin(experiment, ours.base())
    batch = next(stream)
    losses = ours.loss(batch), peer_loss(model, unpack(batch))
    mode = f"LoRA of rank {experiment.lora.rank}" if experiment.lora.rank else "all parameters"
    print(f"\n{mode} trained: {count_parameters(ours.state.params):,} of {count_parameters(ours.weights()):,}")
    print(f"loss on the first batch: ours {losses[0]:.6f}, peer {losses[1]:.6f}")
    if abs(losses[0] - losses[1]) > 1e-4:
        raise SystemExit("the two do not compute the same: no comparison")
    model = with_adapters(model, experiment.lora)
    batches = [batch]
    ours.run(1)  # compiles
    rounds = []
    for _ in range(_args.rounds):
        batches = [next(stream) for _ in range(1 + _args.steps)]
        rounds.append(measure(experiment, ours, model, batches))
    report(experiment, rounds)


def measure(experiment: Experiment, ours: Ours, model: torch.nn.Module, batches: Sequence[Batch]) -> Round:
    """One turn of each; `batches` are those that ours will read."""
    timed = batches[1:]
    return Round(
        ours=ours.run(len(batches)),
        peer=peer_seconds(model, [unpack(batch) for batch in batches]),
        gemm=gemm_seconds(),
        tokens=sum(int((batch["segments"] > 0).sum()) for batch in timed),
        useful_flops=sum(useful_flops(experiment.model, batch) for batch in timed),
        all_flops=sum(all_flops(experiment.model, batch) for batch in timed),
    )


def report(experiment: Experiment, rounds: Sequence[Round]) -> None:
    """Medians over the rounds, and the best one."""
    columns = {name: np.array(values) for name, values in zip(Round._fields, zip(*rounds, strict=True), strict=True)}
    ours, peer = (columns["tokens"] / columns[name] for name in ("ours", "peer"))
    gemm = 2 * _GEMM_SIZE**3 / columns["gemm"]
    print(f"{'':36}{'median':>10}{'best':>10}")
    _line("ours, tokens/s", ours)
    _line("Hugging Face, tokens/s", peer)
    _line("ratio", ours / peer, digits=2)
    _line(f"matrix product n={_GEMM_SIZE}, GFLOP/s", gemm / 1e9)
    if not experiment.lora.rank:
        _line("ours, useful GFLOP/s", columns["useful_flops"] / columns["ours"] / 1e9)
        _line("  % of the best matrix product", 100 * columns["useful_flops"] / columns["ours"] / gemm.max())
        _line("  % with padding and masked pairs", 100 * columns["all_flops"] / columns["ours"] / gemm.max())


def _line(name: str, values: np.ndarray, digits: int = 0) -> None:
    print(f"{name:36}{np.median(values):10,.{digits}f}{values.max():10,.{digits}f}")


def gemm_seconds(repeats: int = 10) -> float:
    """Best time of a float32 matrix product: what the machine gives to JAX."""
    a, b = (jax.random.normal(jax.random.key(seed), (_GEMM_SIZE, _GEMM_SIZE)) for seed in (0, 1))
    multiply = jax.jit(jnp.matmul)
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        multiply(a, b).block_until_ready()
        times.append(time.perf_counter() - begin)
    return min(times)


def useful_flops(cfg: LlamaConfig, batch: Batch) -> float:
    """Of a training step on the batch's real tokens and the pairs of them that see each other."""
    pairs = 0
    for row in batch["segments"]:
        lengths = np.bincount(row)[1:]
        pairs += int((lengths * (lengths + 1) // 2).sum())
    return _flops(cfg, tokens=int((batch["segments"] > 0).sum()), pairs=pairs)


def all_flops(cfg: LlamaConfig, batch: Batch) -> float:
    """The same over every position and every pair of positions in a row: what is in fact multiplied."""
    rows, length = batch["tokens"].shape
    return _flops(cfg, tokens=rows * length, pairs=rows * length**2)


def _flops(cfg: LlamaConfig, *, tokens: int, pairs: int) -> float:
    """A multiply and an add are two, and the backward pass takes two products for each of the forward pass."""
    heads = cfg.num_heads * cfg.head_dim
    attention = cfg.embed_dim * (2 * heads + 2 * cfg.num_kv_heads * cfg.head_dim)
    weights = cfg.num_layers * (attention + 3 * cfg.embed_dim * cfg.mlp_dim) + cfg.embed_dim * cfg.vocab_size
    return 3 * (2 * weights * tokens + cfg.num_layers * 4 * heads * pairs)


if __name__ == "__main__":
    main()
