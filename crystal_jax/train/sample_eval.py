"""Draws a few crystals from the model during training and measures how many are valid.

This is the only place where training imports the sampler and the evaluator: a loss says little about validity.
"""

from __future__ import annotations

import contextlib
import functools
from collections import Counter

import numpy as np
from flax import nnx
from jax.sharding import Mesh
from pymatgen.core import Composition

from crystal_jax.checkpoint.models import abstract_parameters
from crystal_jax.config import SAMPLE_RATES, Experiment
from crystal_jax.evaluate.chemistry.oxidation import load_oxidation_table
from crystal_jax.evaluate.chemistry.validity import compositional_invalid_reason, structural_invalid_reason
from crystal_jax.sample.constraints.rules import Rules
from crystal_jax.sample.engine.engine import Engine
from crystal_jax.sample.engine.request import Completion, GenerationRequest
from crystal_jax.sample.sample_spec import SampleSpecBuilder
from crystal_jax.sample.samples_file import to_cif
from crystal_jax.structures import Entry, parse
from crystal_jax.suppress_warnings import quiet
from crystal_jax.text.grammar.language import text_automaton
from crystal_jax.text.tokenizer import Tokenizer, completion_text
from crystal_jax.train.step import TrainSetup, TrainState


class SampleEval:
    """Draws a fixed number of unconditional samples at temperature 1, without retries and with the same seed at each
    call.
    """

    def __init__(self, experiment: Experiment, tokenizer: Tokenizer, mesh: Mesh):
        self._text, self._tokenizer, self._table = experiment.text, tokenizer, load_oxidation_table()
        graph, *_ = abstract_parameters(experiment, mesh, experiment.quantize)
        self._number, self._seed = experiment.train.eval_num_samples, experiment.train.seed
        automaton = text_automaton(tokenizer, experiment.text)
        self._specs = SampleSpecBuilder([{}], Rules(), automaton, tokenizer, experiment.text)
        self._compositions = self._specs.make_compositions(
            graph, experiment.model, mesh, seed=self._seed, at_once=self._number
        )
        self._engine = Engine(
            graph,
            experiment.model,
            automaton,
            mesh=mesh,
            rows=self._number,
            prompt_tokens=self._specs.head_tokens,
        )

    def __call__(self, setup: TrainSetup, state: TrainState) -> dict[str, float]:
        """Returns the rates `sample_validity`, `sample_structural_validity` and `sample_compositional_validity` of all
        samples.
        """
        params = nnx.merge_state(state.params, setup.frozen)
        stating = None
        if self._compositions:
            stating = functools.partial(self._compositions, params, temperature=1.0, top_p=1.0)
        requests = (
            GenerationRequest(index=i, prompt=spec.head, seed=self._seed, limits=spec.limits, guide=spec.guide)
            for i, spec in self._specs(range(self._number), stating)
        )
        with contextlib.closing(self._engine.run(params, requests)) as samples:
            verdicts = np.array([self._judge(drawn) for drawn in samples])
        return dict(zip(SAMPLE_RATES, verdicts.mean(axis=0).tolist(), strict=True))

    @quiet()
    def _judge(self, drawn: Completion) -> tuple[bool, bool, bool]:
        """Returns whether a sample is valid, and whether its structure and its composition are."""
        head = drawn.request.prompt
        crystal = self._text.decode(completion_text(self._tokenizer, self._specs.texts[0], head, drawn.ids))
        found = parse(Entry("", to_cif(crystal), formula=Composition(Counter(crystal.symbols)).formula))
        structure = found.structure is not None and structural_invalid_reason(found.structure) is None
        composition = (
            found.composition is not None and compositional_invalid_reason(found.composition, self._table) is None
        )
        return structure and composition, structure, composition
