"""The inference engine: decodes requests with one model under one grammar."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Iterator

import numpy as np
from jax.sharding import Mesh

from crystal_jax.config import ModelConfig, check_length
from crystal_jax.model.parameters import ModelGraph, Params
from crystal_jax.sample.constraints.masks import to_device
from crystal_jax.sample.engine.capacities import cache_capacities
from crystal_jax.sample.engine.decode_threads import decode_threads, run_threads
from crystal_jax.sample.engine.programs import EngineShape, make_programs
from crystal_jax.sample.engine.request import Completion, GenerationRequest
from crystal_jax.sample.engine.scheduler import Scheduler
from crystal_jax.sharding import platform_of, row_parts
from crystal_jax.storage.worker_pool import available_workers
from crystal_jax.text.crystal_text import ELEMENTS
from crystal_jax.text.grammar.automaton import TokenAutomaton

# With more, the padding of a prefill costs more than further prefills.
PROMPTS_AT_ONCE = 4


class Engine:
    """Decodes requests with one model, in a fixed number of slots, with functions compiled once.

    On a mesh, slots and cache are split over its devices. On several hosts, each runs the same engine with the same
    requests: every decision about slots is the same on all of them. On one CPU, the slots are split over threads.

    Attributes:
        mesh: Device mesh that holds the parameters.
        programs: The compiled functions.
    """

    def __init__(
        self,
        graph: ModelGraph,
        cfg: ModelConfig,
        automaton: TokenAutomaton,
        *,
        mesh: Mesh,
        rows: int,
        prompt_tokens: int,
        prompts_at_once: int = PROMPTS_AT_ONCE,
        steps: int = 8,
        jump: bool = True,
        sorted_sites: bool = False,
        coded: bool = False,
        threads: int | None = None,
    ):
        """Defines the compiled functions and puts the tables of the grammar on the devices.

        Args:
            graph: Graph definition of the model.
            cfg: Configuration of the model.
            automaton: The grammar.
            mesh: Device mesh that holds the parameters.
            rows: Number of slots; rounded up to a multiple of the devices, or threads, that split them.
            prompt_tokens: Length of the longest prompt, BOS included.
            prompts_at_once: Prompts of one prefill; 1 if all requests have the same prompt.
            steps: Decode steps between two reads of the state by the host.
            jump: Append tokens that the grammar forces without a decode step of their own.
            sorted_sites: Sites have an order; while a request has retries left, a violation of the order rejects its
                sequence.
            coded: Keep keys and values in 8 bits.
            threads: Decode threads that share the slots, on one CPU; by default one per 32 slots, at most one per core.

        Raises:
            UserError: the longest sequence has more tokens than the model can read.
        """
        check_length(cfg, prompt_tokens + automaton.max_tokens - 1)  # the model never reads EOS
        self.mesh, self._automaton, self._prompt_tokens = mesh, automaton, prompt_tokens
        platform = platform_of(mesh)
        one_cpu = mesh.size == 1 and platform == "cpu"
        self._threads = (threads or decode_threads(rows, available_workers())) if one_cpu else 1
        split = self._threads * row_parts(mesh)
        self._rows = (rows + -rows % split) // self._threads
        tables = to_device(automaton, jump=jump, sorted_sites=sorted_sites)
        self._prompts_at_once = min(prompts_at_once, self._rows)
        shape = EngineShape(
            graph=graph,
            cfg=cfg,
            mesh=mesh,
            rows=self._rows,
            # Elsewhere, few compiled programs are worth more than small shapes: TPU and GPU read all weights in each
            # step, and cuDNN attends to filled positions only.
            capacities=cache_capacities(prompt_tokens, automaton.max_tokens + tables.forced.shape[1], grows=one_cpu),
            num_values=len(automaton.values),
            prompt_tokens=prompt_tokens,
            max_tokens=automaton.max_tokens,
            steps=steps,
            coded=coded,
            # On several devices, packing would move tokens between them. On TPU a decode step is bound by memory
            # bandwidth, so saving arithmetic does not pay.
            packed=mesh.size == 1 and platform != "tpu",
        )
        self.programs = make_programs(shape, tables)

    def run(self, params: Params, requests: Iterable[GenerationRequest]) -> Generator[Completion, None, None]:
        """Yields the completion of each request as soon as it is finished, in no particular order.

        Args:
            params: Parameters of the model.
            requests: Requests; they are taken from the iterable as slots become free.

        Raises:
            ValueError: a prompt is longer than `prompt_tokens`, or the limits ask for a composition that the grammar
                cannot write.
        """
        layers = self.programs.layers(params)

        def decode(requests: Iterator[GenerationRequest], stop: threading.Event) -> Iterator[Completion]:
            scheduler = Scheduler(
                self.programs,
                params,
                layers,
                self._automaton,
                rows=self._rows,
                prompt_tokens=self._prompt_tokens,
                prompts_at_once=self._prompts_at_once,
            )
            return scheduler.run(map(self._checked, requests), stop)

        return run_threads(decode, requests, threads=self._threads)

    def _checked(self, request: GenerationRequest) -> GenerationRequest:
        """Returns the request if this engine can decode it."""
        if len(request.prompt) > self._prompt_tokens:
            raise ValueError(f"a prompt of {len(request.prompt)} tokens; there is room for {self._prompt_tokens}")
        most = int(request.limits.max_atoms)
        # Without a formula, the grammar ends a sequence at its maximum number of atoms. With a formula, that could cut
        # the composition short.
        if request.limits.formula.any() and most > self._automaton.max_atoms:
            raise ValueError(f"max_atoms={most}; there is room for {self._automaton.max_atoms}")
        elements = [ELEMENTS.index(symbol) for symbol in self._automaton.elements]
        beyond = np.delete(request.limits.formula, elements)
        if beyond.any() or not request.limits.elements[elements].any():
            raise ValueError("the tokenizer cannot write the elements that are asked for")
        if request.guide is not None and not self._automaton.separate:
            raise ValueError(
                "the tokenizer has tokens that end one number and begin the next: no guide can stop between"
            )
        return request
