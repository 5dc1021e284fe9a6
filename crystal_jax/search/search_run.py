"""One search: the model, the prompt and its limits, the tree, and the crystals that it finds."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from crystal_jax.checkpoint.inference import load_inference_model
from crystal_jax.errors import RequestError, UserError
from crystal_jax.provenance import provenance
from crystal_jax.sample.constraints.rules import Rules, merged_with
from crystal_jax.sample.requests import FORMULA, check_trained_on
from crystal_jax.sample.sample_spec import SampleSpec, SampleSpecBuilder
from crystal_jax.sample.samples_file import SamplesFile
from crystal_jax.search.config import SearchConfig
from crystal_jax.search.tree import Search
from crystal_jax.storage.files import is_new
from crystal_jax.text.grammar.crystal import crystal_automaton
from crystal_jax.text.tokenizer import completion_text

_COMPOSITIONS_AT_ONCE = 32  # composition lines drawn side by side until one is admitted


class SearchRun:
    """The objects that a search consists of.

    Raises:
        UserError: no such checkpoint, a setting that does not go with the model, or an output that is not empty.
    """

    def __init__(self, config: SearchConfig):
        self.config = config
        self._asked, self._limits = config.conditions or {}, dict(config.limits)
        if not is_new(Path(config.output)):
            raise UserError(f"{config.output} is not empty, and a search is not continued; choose another --output")
        self._model = load_inference_model(config.checkpoint, step=config.step, mesh=config.mesh)
        experiment = self._model.experiment
        check_trained_on(self._asked, experiment.task, checkpoint=config.checkpoint)
        if experiment.text.version == "wyckoff":
            raise UserError(f"{config.checkpoint} writes texts by symmetry, which search does not read yet; use sample")
        try:
            rules = merged_with(Rules(max_atoms=config.max_atoms), self._limits)
            self._automaton = crystal_automaton(self._model.tokenizer, experiment.text, max_atoms=config.max_atoms)
            specs = SampleSpecBuilder([self._asked], rules, self._automaton, self._model.tokenizer, experiment.text)
        except RequestError as error:
            raise UserError(str(error)) from error
        self._spec = self._drawn(specs)
        self._tree = Search(
            self._model.trained.graph,
            experiment.model,
            self._automaton,
            mesh=self._model.mesh,
            prompt=self._spec.head,
            width=config.width,
            exploration=config.exploration,
            temperature=config.temperature,
            limits=self._spec.limits,
        )

    def _drawn(self, specs: SampleSpecBuilder) -> SampleSpec:
        """Returns the specification of all crystals, with its composition line if the text format has one."""
        config, model = self.config, self._model
        compositions = specs.make_compositions(
            model.trained.graph, model.experiment.model, model.mesh, seed=config.seed, at_once=_COMPOSITIONS_AT_ONCE
        )
        state = None
        if compositions:
            state = functools.partial(compositions, model.trained.params, temperature=config.temperature, top_p=1.0)
        elif specs.draws_formulas:
            raise UserError(
                f"{config.checkpoint} writes no composition first: to search for {', '.join(self._asked)}, give a "
                "--formula as well"
            )
        ((_, spec),) = specs([0], state)
        if spec.stated is not None and not spec.stated.admitted:
            raise UserError("the model states no composition within the limits in 1,000 attempts; ask for less")
        return spec

    def request(self) -> dict[str, Any]:
        """Returns what decides the result, for `run.json`."""
        config = self.config
        return {
            **self._model.checkpoint_request(),
            "prompt": self._spec.text,
            "reward": config.reward_name,
            "budget": config.budget,
            "limits": self._limits | ({"formula": "the requested one"} if FORMULA in self._asked else {}),
            "hints": [name for name in self._asked if name != FORMULA],
            "exploration": config.exploration,
            "temperature": config.temperature,
            "width": config.width,
            "seed": config.seed,
            **self._model.text_request(),
        }

    def write(self) -> Path:
        """Searches, and writes the crystals, the best first; returns the path of `samples.csv`.

        Raises:
            UserError: a reward is not finite, or the directory cannot be written to.
        """
        samples = SamplesFile(
            Path(self.config.output), self.request(), provenance(("jax", "flax", "pymatgen"), command="search")
        )
        best: dict[str, dict[str, Any]] = {}  # by text, the first time it was found
        for row in self._found():
            best.setdefault(row["text"], row)
        ranked = sorted(best.values(), key=lambda row: -row["reward"])
        system = {name: self._limits[name] for name in ("chemical_system",) if name in self._limits}
        facts = {"status": "complete", "prompt": self._spec.text, "request": system | dict(self._asked)}
        samples.append({"index": index, **facts, **row} for index, row in enumerate(ranked))
        return samples.finish(
            self._model.experiment.text, limit=self.config.num_samples, model_name=self._model.trained.name
        )

    def _found(self) -> Iterator[dict[str, Any]]:
        """Yields the reward, the number of model calls and the text of each crystal that the tree finds."""
        config = self.config
        results = self._tree.run(self._model.trained.params, self._reward, budget=config.budget, seed=config.seed)
        with tqdm(total=config.budget, desc="search", unit="call") as bar:
            for found in results:
                yield {"reward": found.reward, "calls": found.calls, "text": self._text(found.ids)}
                bar.update(found.calls - bar.n)

    def _text(self, ids: tuple[int, ...]) -> str:
        return completion_text(self._model.tokenizer, self._spec.text, self._spec.head, ids)

    def _reward(self, ids: tuple[int, ...]) -> float:
        """Returns the reward of a crystal, given the tokens that follow the prompt and the composition line."""
        text = self._text(ids)
        value = self.config.reward(self._model.experiment.text.decode(text))
        if not np.isfinite(value):
            raise UserError(f"the reward {self.config.reward_name} is {value} of\n{text}")
        return value
