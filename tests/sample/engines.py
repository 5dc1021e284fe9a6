"""Engines on small untrained models: what is tested is the sampler, not the model."""

import dataclasses
import math

import jax
from flax import nnx

from crystal_jax.config import MeshConfig
from crystal_jax.model.llama import Llama
from crystal_jax.sample.engine.engine import Engine
from crystal_jax.sample.engine.request import GenerationRequest
from crystal_jax.sharding import make_mesh, tree_shardings
from crystal_jax.text.crystal_text import Crystal, TextFormat
from crystal_jax.text.grammar.automaton import TokenAutomaton
from crystal_jax.text.grammar.crystal import crystal_automaton
from crystal_jax.text.prompts import generation_prompt
from crystal_jax.text.tokenizer import Tokenizer, load_tokenizer, prompt_ids
from tests.experiments import TINY, build

FORMAT = TextFormat()


class Untrained:
    """A tokenizer, its grammar, and a model of one layer."""

    def __init__(self, name: str, path=None, *, max_atoms: int = 20):
        self.tokenizer: Tokenizer = load_tokenizer(name, path)
        self.automaton: TokenAutomaton = crystal_automaton(self.tokenizer, FORMAT, max_atoms=max_atoms)
        size = self.tokenizer.vocab_size
        sizes = dict(embed_dim=16, mlp_dim=16, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=4)
        self.model: Llama = build(dataclasses.replace(TINY, vocab_size=size + size % 2, **sizes))
        self.prompt = prompt_ids(self.tokenizer, generation_prompt())

    def engine(self, rows: int, *, mesh=(1, 1, 1), **options) -> Engine:
        data, fsdp, tensor = mesh
        devices = make_mesh(MeshConfig(data=data, fsdp=fsdp, tensor=tensor), jax.devices()[: math.prod(mesh)])
        graph = nnx.graphdef(self.model)
        return Engine(
            graph, self.model.cfg, self.automaton, mesh=devices, rows=rows, prompt_tokens=len(self.prompt), **options
        )

    def run(self, engine: Engine, number: int, **asked):
        """What the engine draws for this many requests, by their numbers."""
        return self.answers(
            engine, [GenerationRequest(index=i, **{"prompt": self.prompt, **asked}) for i in range(number)]
        )

    def answers(self, engine: Engine, requests):
        state = nnx.state(self.model)
        params = jax.device_put(state, tree_shardings(state, engine.mesh))
        return {drawn.request.index: drawn for drawn in engine.run(params, requests)}

    def crystal(self, drawn) -> Crystal:
        return FORMAT.decode(self.text(drawn))

    def text(self, drawn) -> str:
        text = self.tokenizer.decode(list(drawn.request.prompt[1:] + drawn.ids))
        return text.removeprefix(self.tokenizer.decode(list(drawn.request.prompt[1:]))).lstrip()
