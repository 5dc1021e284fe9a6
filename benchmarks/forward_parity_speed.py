"""A forward pass and a LoRA training step against Hugging Face + PEFT, with LLaMA-2's tokens at their natural lengths.

With LLaMA-2's tokenizer crystals differ in length by a factor of ten. We pack them into rows; the peer, as is usual,
pads a batch to its longest. Same weights, same examples, same threads, float32, in turns. Tokens are real ones.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

_parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
_parser.add_argument("--data", type=Path, required=True, help="a prepared data set")
_parser.add_argument("--tokenizer", type=Path, required=True, help="LLaMA-2's tokenizer.model")
_parser.add_argument("--rounds", type=int, default=5)
_parser.add_argument("--steps", type=int, default=3, help="timed steps of a round; one more warms up")
_parser.add_argument("--threads", type=int, default=2)
_args = _parser.parse_args()

# Both libraries count the cores they may use when they are imported.
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: _args.threads])
os.environ["OMP_NUM_THREADS"] = str(_args.threads)

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks.peer import Ours, begin, hugging_face_twin, peer_loss, peer_seconds, with_adapters  # noqa: E402
from benchmarks.peer_examples import collate, unpack  # noqa: E402
from configs import mp20_open  # noqa: E402
from crystal_jax.config import Experiment, from_config_dict  # noqa: E402
from crystal_jax.data.examples import ExampleMaker  # noqa: E402
from crystal_jax.data.mp20 import open_split  # noqa: E402
from crystal_jax.data.pipeline import Batch, fitting, train_batches  # noqa: E402
from crystal_jax.text.tokenizer import load_tokenizer  # noqa: E402


def experiment() -> Experiment:
    """A base of 35 million parameters, most of them in the vocabulary; the reference's adapters."""
    config = mp20_open.get_config("lora").to_dict()
    config["model"] |= dict(embed_dim=384, mlp_dim=1024, num_layers=6, num_heads=6, num_kv_heads=6, head_dim=64)
    config["data"] |= dict(directory=str(_args.data), seq_len=512, batch_size=8, packing_bins=64)
    config["task"] |= dict(conditions=True, infill=0.34)
    config["tokenizer"] = dict(name="llama2", path=str(_args.tokenizer))
    config["execution"]["loss_chunk"] = 128
    config["lora"] = dict(rank=8, alpha=32.0, targets=("q", "v"))
    return from_config_dict(config, vocab_size=load_tokenizer("llama2", _args.tokenizer).vocab_size)


def real_tokens(batches: list[Batch]) -> int:
    return sum(int((batch["segments"] > 0).sum()) for batch in batches)


def our_forward(ours: Ours, batches: list[Batch]) -> float:
    begin_time = time.perf_counter()
    for batch in batches:
        ours.loss(batch)
    return time.perf_counter() - begin_time


def peer_forward(model: torch.nn.Module, batches: list[Batch]) -> float:
    begin_time = time.perf_counter()
    for batch in batches:
        peer_loss(model, unpack(batch))
    return time.perf_counter() - begin_time


def main() -> None:
    begin(_args.threads)
    cfg = experiment()
    maker = ExampleMaker(load_tokenizer("llama2", _args.tokenizer), cfg.text, cfg.task)
    records, _ = fitting(open_split(_args.data, "train"), maker, seq_len=cfg.data.seq_len)
    ours, stream = Ours(cfg, records, maker), train_batches(records, maker, cfg.data)
    model = with_adapters(hugging_face_twin(cfg, ours.base()), cfg.lora)
    batch = next(stream)
    losses = ours.loss(batch), peer_loss(model, unpack(batch))
    print(f"loss on the first batch: ours {losses[0]:.6f}, peer {losses[1]:.6f}")
    if abs(losses[0] - losses[1]) > 1e-4:
        raise SystemExit("the two do not compute the same: no comparison")
    padded = collate([unpack(batch)])["input_ids"].numel()
    print(f"real tokens in a batch: {real_tokens([batch])}; ours computes {batch['tokens'].size}, the peer {padded}")
    ours.run(1)  # compiles
    rates: dict[str, list[float]] = {name: [] for name in ("forward", "peer's forward", "step", "peer's step")}
    for _ in range(_args.rounds):
        batches = [next(stream) for _ in range(1 + _args.steps)]
        tokens = real_tokens(batches[1:])
        rates["step"].append(tokens / ours.run(len(batches)))
        rates["peer's step"].append(tokens / peer_seconds(model, [unpack(batch) for batch in batches]))
        rates["forward"].append(tokens / our_forward(ours, batches[1:]))
        rates["peer's forward"].append(tokens / peer_forward(model, batches[1:]))
    print(f"{'real tokens/s':24}{'median':>10}{'best':>10}")
    for name, values in rates.items():
        print(f"{name:24}{np.median(values):10,.0f}{max(values):10,.0f}")
    for name in ("forward", "step"):
        ratio = np.array(rates[name]) / np.array(rates[f"peer's {name}"])
        print(f"{name + ', ratio':24}{np.median(ratio):10.2f}{ratio.max():10.2f}")


if __name__ == "__main__":
    main()
