"""Sampling against Hugging Face's `generate`, a decode step against memory bandwidth, and what the constraints cost.

The peer does what the reference does: a batch is padded on the left, `generate` writes each row to its end or to the
longest a crystal may be, and what does not parse is thrown away. Ours are 'crystal-jax sample's engine and grammar.
Same weights, tokenizer, prompts, temperature, top-p and threads, float32, in turns.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

_parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
_parser.add_argument("--checkpoint", type=Path, required=True, help="workdir of a trained model")
_parser.add_argument("--data", type=Path, required=True, help="a prepared data set, whose test split gives conditions")
_parser.add_argument("--batches", default="64,256", help="rows written side by side")
_parser.add_argument("--rounds", type=int, default=2, help="batches that each contestant writes, of each size")
_parser.add_argument("--temperature", type=float, default=0.7)
_parser.add_argument("--top_p", type=float, default=1.0)
_parser.add_argument("--threads", type=int, default=2)
_args = _parser.parse_args()

# Both libraries count the cores they may use when they are imported.
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: _args.threads])
os.environ["OMP_NUM_THREADS"] = str(_args.threads)

import jax  # noqa: E402
import torch  # noqa: E402

from benchmarks.decode_loop import Decoder, bare_step, masked_step, step_seconds  # noqa: E402
from benchmarks.peer import begin, hugging_face_twin  # noqa: E402
from crystal_jax.checkpoint.models import Trained, load_trained  # noqa: E402
from crystal_jax.config import MeshConfig  # noqa: E402
from crystal_jax.data.mp20 import open_split  # noqa: E402
from crystal_jax.model.frozen_base.lora import count_parameters, merge_adapters  # noqa: E402
from crystal_jax.sample.engine.engine import Engine  # noqa: E402
from crystal_jax.sample.engine.request import GenerationRequest  # noqa: E402
from crystal_jax.sharding import make_mesh  # noqa: E402
from crystal_jax.text.grammar.automaton import TokenAutomaton  # noqa: E402
from crystal_jax.text.grammar.crystal import crystal_automaton  # noqa: E402
from crystal_jax.text.prompts import generation_prompt  # noqa: E402
from crystal_jax.text.tokenizer import Tokenizer, completion_text, load_tokenizer, prompt_ids  # noqa: E402


def main() -> None:
    begin(_args.threads)
    mesh = make_mesh(MeshConfig(data=-1, fsdp=1, tensor=1))
    trained = load_trained(_args.checkpoint, mesh)
    cfg = trained.experiment
    tokenizer = load_tokenizer(cfg.tokenizer.name, Path(cfg.tokenizer.path))
    automaton = crystal_automaton(tokenizer, cfg.text)
    peer = hugging_face_twin(cfg, merge_adapters(trained.params, cfg.lora)).eval()
    print(f"{count_parameters(trained.params):,} parameters, {tokenizer.name} tokens, step {trained.step}")
    for rows in map(int, _args.batches.split(",")):
        compare(trained, automaton, tokenizer, peer, rows)
    limit(trained, automaton)
    for rows in map(int, _args.batches.split(",")):
        constraints(trained, automaton, rows)


def texts() -> list[str]:
    """Prompts of several lengths: the compositions of real crystals that no model has seen."""
    records = itertools.islice(open_split(_args.data, "test"), 32)
    return [generation_prompt({"pretty_formula": record.formula}) for record in records]


def compare(
    trained: Trained, automaton: TokenAutomaton, tokenizer: Tokenizer, peer: torch.nn.Module, rows: int
) -> None:
    """Both write `rounds` batches."""
    asked = list(itertools.islice(itertools.cycle(texts()), _args.rounds * rows))
    prompts = [prompt_ids(tokenizer, text) for text in asked]
    mesh = jax.tree.leaves(trained.params)[0].sharding.mesh
    engine = Engine(
        trained.graph, trained.experiment.model, automaton, mesh=mesh, rows=rows, prompt_tokens=max(map(len, prompts))
    )

    def ours(seed: int) -> list[tuple[int, ...]]:
        written: list[tuple[int, ...]] = [()] * len(prompts)
        settings = dict(seed=seed, temperature=_args.temperature, top_p=_args.top_p)
        requests = [GenerationRequest(index=i, prompt=prompt, **settings) for i, prompt in enumerate(prompts)]
        for drawn in engine.run(trained.params, requests):
            written[drawn.request.index] = drawn.ids
        return written

    def theirs() -> list[tuple[int, ...]]:
        batches = [prompts[i : i + rows] for i in range(0, len(prompts), rows)]
        return [ids for batch in batches for ids in generate(peer, tokenizer.eos_id, batch, automaton.max_tokens)]

    def parses(text: str, prompt: tuple[int, ...], ids: tuple[int, ...]) -> bool:
        try:
            trained.experiment.text.decode(completion_text(tokenizer, text, prompt, ids))
        except ValueError:
            return False
        return True

    ours(1)  # compiles for all sizes that these texts come to
    print(f"\n{rows} rows, {len(prompts)} samples, temperature {_args.temperature}, top-p {_args.top_p}")
    rates = {}
    for name, run in (("ours", lambda: ours(1)), ("peer", theirs)):
        start, busy = time.perf_counter(), time.process_time()
        written = run()
        seconds, busy = time.perf_counter() - start, time.process_time() - busy
        parsed = sum(map(parses, asked, prompts, written))
        rates[name] = len(prompts) / seconds, parsed / seconds
        # On a machine that others use, the processor's time says more than the clock's.
        print(f"{name}: {seconds:.1f} s ({busy:.1f} s of CPU), {parsed} of {len(prompts)} parse, ", end="")
        print(f"{3600 * parsed / seconds:,.0f} an hour")
    samples, crystals = (mine / peers for mine, peers in zip(rates["ours"], rates["peer"], strict=True))
    print(f"ratio: {crystals:.2f} in parsable crystals, {samples:.2f} in samples before rejection")


def generate(
    peer: torch.nn.Module, eos_id: int, prompts: Sequence[tuple[int, ...]], max_tokens: int
) -> list[tuple[int, ...]]:
    """What `generate` writes after the prompts of a batch, up to EOS."""
    longest = max(map(len, prompts))
    with torch.inference_mode():
        out = peer.generate(
            input_ids=torch.tensor([[eos_id] * (longest - len(p)) + list(p) for p in prompts]),
            attention_mask=torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts]),
            do_sample=True,
            temperature=_args.temperature,
            top_p=_args.top_p,
            top_k=0,
            max_new_tokens=max_tokens,
            pad_token_id=eos_id,
            eos_token_id=eos_id,
            use_cache=True,
        )
    written = [row[longest:] for row in out.tolist()]
    return [tuple(itertools.takewhile(lambda token: token != eos_id, row)) for row in written]


def decoder_of(trained: Trained, automaton: TokenAutomaton) -> Decoder:
    mesh = jax.tree.leaves(trained.params)[0].sharding.mesh
    return Decoder(trained.graph, trained.params, trained.experiment, automaton, mesh)


def limit(trained: Trained, automaton: TokenAutomaton) -> None:
    """One row: the time of a step against that of reading what it must read."""
    decoder = decoder_of(trained, automaton)
    tables, rows, grants = decoder.begin(1)
    seconds = min(step_seconds(masked_step(tables, grants), decoder, rows))
    big = torch.ones(1 << 28)
    bandwidth = max(big.nbytes / timed(big.sum) for _ in range(5))
    needed = decoder.bytes_read(rows)
    print(
        f"\n1 row: a step takes {1e3 * seconds:.2f} ms; it reads {needed / 2**20:.1f} MiB of weights and cache, which"
    )
    print(f"at {bandwidth / 1e9:.1f} GB/s, measured, take {1e3 * needed / bandwidth:.2f} ms: ", end="")
    print(f"{needed / bandwidth / seconds:.0%} of the limit")
    bare = min(step_seconds(bare_step(tables), decoder, rows))
    print(f"of it {1e3 * bare:.2f} ms are the model and a draw, the rest is grammar and masks")


def timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def constraints(trained: Trained, automaton: TokenAutomaton, rows: int) -> None:
    """A decode step with grammar, element and formula masks against the model and a draw alone."""
    decoder = decoder_of(trained, automaton)
    tables, begun, grants = decoder.begin(rows)
    masked = min(step_seconds(masked_step(tables, grants), decoder, begun))
    bare = min(step_seconds(bare_step(tables), decoder, begun))
    print(f"{rows} rows: a step takes {1e3 * masked:.2f} ms, without any mask {1e3 * bare:.2f} ms: ", end="")
    print(f"masks are {1 - bare / masked:.1%} of it")


if __name__ == "__main__":
    main()
