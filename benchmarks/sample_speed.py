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
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from flax import nnx  # noqa: E402

from benchmarks.peer import begin, hugging_face_twin  # noqa: E402
from crystal_jax.checkpoint.models import Trained, load_trained  # noqa: E402
from crystal_jax.config import MeshConfig  # noqa: E402
from crystal_jax.data.mp20 import open_split  # noqa: E402
from crystal_jax.model.llama import Llama  # noqa: E402
from crystal_jax.model.lora import count_parameters, merge_adapters  # noqa: E402
from crystal_jax.sample.constraints import Grants, make_limits, to_device  # noqa: E402
from crystal_jax.sample.decode import Rows, budget_of, draw, free_rows, write  # noqa: E402
from crystal_jax.sample.guide import NEVER  # noqa: E402
from crystal_jax.sample.scheduler import Engine  # noqa: E402
from crystal_jax.sample.texts import Request  # noqa: E402
from crystal_jax.sharding import make_mesh  # noqa: E402
from crystal_jax.text.automaton import TokenAutomaton  # noqa: E402
from crystal_jax.text.grammar import crystal_automaton  # noqa: E402
from crystal_jax.text.prompts import generation_prompt  # noqa: E402
from crystal_jax.text.tokenizer import Tokenizer, completion_text, load_tokenizer, prompt_ids  # noqa: E402

STEPS = 32  # of a timed decode loop: fewer than any crystal takes


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
        requests = [Request(index=i, prompt=prompt, **settings) for i, prompt in enumerate(prompts)]
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


def begun(trained: Trained, automaton: TokenAutomaton, rows: int) -> tuple[Rows, Grants]:
    """Rows at the start of a crystal whose composition is asked for."""
    rng = np.random.default_rng(0)
    tables = to_device(automaton)
    free = free_rows(trained.experiment.model, tables, rows=rows, prompt_tokens=32, max_tokens=automaton.max_tokens)
    limits = make_limits(formula="LiFePO4", max_atoms=automaton.max_atoms)
    return free._replace(
        cache=free.cache._replace(length=jnp.full(rows, 32, jnp.int32)),
        logits=jnp.asarray(rng.normal(size=free.logits.shape), jnp.float32),
        state=jnp.broadcast_to(tables.start, rows),
        wish=free.wish._replace(
            temperature=jnp.ones(rows),
            top_p=jnp.ones(rows),
            limits=jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (rows, *np.shape(leaf))), limits),
        ),
    ), Grants(jnp.ones((rows, len(automaton.values)), bool), jnp.full(rows, NEVER))


Layers = list[nnx.State]
Step = Callable[[Llama, Layers, Rows], Rows]


def step_seconds(step: Step, trained: Trained, rows: Rows) -> float:
    """The best time of a decode step, many of which run in one loop on the device, as in the engine."""
    layers = jax.jit(lambda params: nnx.merge(trained.graph, params).layers())(trained.params)

    def loop(params: nnx.State, layers: Layers, rows: Rows) -> Rows:
        model = nnx.merge(trained.graph, params)
        return jax.lax.fori_loop(0, STEPS, lambda _, rows: step(model, layers, rows), rows)

    compiled = jax.jit(loop, donate_argnums=2)
    times = []
    for _ in range(6):
        copy = jax.block_until_ready(jax.tree.map(jnp.copy, rows))
        start = time.perf_counter()
        jax.block_until_ready(compiled(trained.params, layers, copy))
        times.append(time.perf_counter() - start)
    return min(times[1:]) / STEPS


def masked_step(automaton: TokenAutomaton, grants: Grants) -> Step:
    tables = to_device(automaton)

    def step(model: Llama, layers: Layers, rows: Rows) -> Rows:
        return write(model, tables, rows, grants, layers=layers, budget=budget_of(len(rows.state), tables))

    return step


def bare_step(automaton: TokenAutomaton) -> Step:
    """The model, and a draw from its logits; as many tokens are read as with the grammar, and nothing is forbidden."""
    tables = to_device(automaton)

    def step(model: Llama, layers: Layers, rows: Rows) -> Rows:
        keys = jax.vmap(jax.random.fold_in)(rows.wish.key, rows.written)
        column = draw(keys, rows.logits, rows.wish.temperature, rows.wish.top_p)
        chunk = jnp.broadcast_to(tables.token_ids[column][:, None], (len(column), 1 + tables.forced.shape[1]))
        budget = budget_of(len(column), tables)
        hidden, cache = model.extend(chunk, jnp.ones_like(column), rows.cache, layers=layers, budget=budget)
        logits = model.unembed(hidden[:, :1], tables.token_ids)[:, 0]
        return rows._replace(cache=cache, logits=logits, written=rows.written + 1)

    return step


def limit(trained: Trained, automaton: TokenAutomaton) -> None:
    """One row: the time of a step against that of reading what it must read."""
    rows, grants = begun(trained, automaton, 1)
    seconds = step_seconds(masked_step(automaton, grants), trained, rows)
    blocks = sum(leaf.nbytes for leaf in jax.tree.leaves(trained.params["blocks"]))
    head = automaton.token_ids.size * trained.experiment.model.embed_dim * 4
    cache = sum(leaf.nbytes for leaf in jax.tree.leaves((rows.cache.keys, rows.cache.values)))
    big = torch.ones(1 << 28)
    bandwidth = max(big.nbytes / timed(big.sum) for _ in range(5))
    needed = blocks + head + cache
    print(
        f"\n1 row: a step takes {1e3 * seconds:.2f} ms; it reads {needed / 2**20:.1f} MiB of weights and cache, which"
    )
    print(f"at {bandwidth / 1e9:.1f} GB/s, measured, take {1e3 * needed / bandwidth:.2f} ms: ", end="")
    print(f"{needed / bandwidth / seconds:.0%} of the limit")
    bare = step_seconds(bare_step(automaton), trained, rows)
    print(f"of it {1e3 * bare:.2f} ms are the model and a draw, the rest is grammar and masks")


def timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def constraints(trained: Trained, automaton: TokenAutomaton, rows: int) -> None:
    """A decode step with grammar, element and formula masks against the model and a draw alone."""
    begin_rows, grants = begun(trained, automaton, rows)
    masked = step_seconds(masked_step(automaton, grants), trained, begin_rows)
    bare = step_seconds(bare_step(automaton), trained, begin_rows)
    print(f"{rows} rows: a step takes {1e3 * masked:.2f} ms, without any mask {1e3 * bare:.2f} ms: ", end="")
    print(f"masks are {1 - bare / masked:.1%} of it")


if __name__ == "__main__":
    main()
