"""Crystals an hour by our sampler: random weights, the grammar on, and lengths made real.

A model with random weights would write crystals of any length. So each request carries the composition of a real
crystal of `mp20_open`, and the grammar holds the text to it: it then has the real crystal's number of sites, and so,
but for a digit here and there, of tokens. Requests are twice as many as slots, so that slots are filled again.
"""

from __future__ import annotations

import json
import time

import jax
from flax import nnx

from benchmarks.gpu.case import Case
from benchmarks.gpu.models import experiment_of, one_device, peak_memory, random_like
from crystal_jax.checkpoint.models import abstract_parameters, in_model_dtype
from crystal_jax.config import Experiment, LoraConfig
from crystal_jax.sample.constraints.masks import exactly
from crystal_jax.sample.engine.engine import Engine
from crystal_jax.sample.engine.request import GenerationRequest
from crystal_jax.text.grammar.automaton import TokenAutomaton
from crystal_jax.text.grammar.crystal import crystal_automaton
from crystal_jax.text.prompts import generation_prompt
from crystal_jax.text.tokenizer import Tokenizer, load_tokenizer, prompt_ids


def main() -> None:
    case = Case(__doc__, size="7b", attention="einsum", batch_sizes="256")
    graph, params, experiment, mesh = merged_model(case)
    tokenizer, automaton = language(case, experiment)
    prompt = tuple(prompt_ids(tokenizer, generation_prompt({})))
    for slots in map(int, case.options.batch_sizes.split(",")):
        slots = 4 if case.dry_run else slots
        crystals = replayed(case, 2 * slots)
        engine = Engine(graph, experiment.model, automaton, mesh=mesh, rows=slots, prompt_tokens=len(prompt))
        requests = [
            GenerationRequest(index=i, prompt=prompt, limits=exactly(one["atoms"])) for i, one in enumerate(crystals)
        ]
        begin = time.perf_counter()
        list(engine.run(params, requests[:1]))
        case.answer.put(f"compile_{slots}", time.perf_counter() - begin, "s")
        rates, lengths, seconds = [], [], 0.0
        while len(rates) < 3 and (not rates or case.has_time(1.3 * seconds)):
            begin = time.perf_counter()
            drawn = list(engine.run(params, requests))
            seconds = time.perf_counter() - begin
            rates.append(3600 * sum(one.complete for one in drawn) / seconds)
            lengths = [len(one.ids) + 1 for one in drawn]
            case.answer.put(f"crystals_per_hour_{slots}", rates, "crystals/h")
        real = sum(one["tokens"] for one in crystals) / len(crystals)
        case.answer.put(f"tokens_{slots}", f"{sum(lengths) / len(lengths):.0f} a crystal; real ones {real:.0f}")
    if (memory := peak_memory(jax.devices()[0])) is not None:
        case.answer.put("peak_memory", memory, "GiB")


def merged_model(case: Case) -> tuple[nnx.GraphDef, nnx.State, Experiment, jax.sharding.Mesh]:
    """A model as it is sampled from after its adapters were merged: random, in the type it computes in."""
    import dataclasses

    experiment = experiment_of(case.options.size, dry_run=case.dry_run, attention=case.options.attention)
    experiment = dataclasses.replace(experiment, lora=LoraConfig(rank=0, alpha=1.0, targets=()))
    execution = dataclasses.replace(experiment.execution, scan_layers=False, remat=False)
    experiment = dataclasses.replace(experiment, execution=execution)
    mesh = one_device(experiment)
    graph, like, _ = abstract_parameters(experiment, mesh)
    return graph, random_like(in_model_dtype(like, experiment.model)), experiment, mesh


def language(case: Case, experiment: Experiment) -> tuple[Tokenizer, TokenAutomaton]:
    """LLaMA-2's tokenizer and the grammar in its tokens."""
    tokenizer = load_tokenizer("llama2", case.bundle / "tokenizer.model")
    return tokenizer, crystal_automaton(tokenizer, experiment.text)


def replayed(case: Case, count: int) -> list[dict]:
    """Real crystals, from the beginning of the file again where it has fewer."""
    crystals = json.loads((case.bundle / "crystals.json").read_text())
    return [crystals[i % len(crystals)] for i in range(count)]


if __name__ == "__main__":
    main()
