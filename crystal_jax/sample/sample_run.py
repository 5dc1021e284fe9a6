"""One sampling run: the model, the grammar and the constraints that its configuration asks for, and its samples."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

from crystal_jax.checkpoint.inference import load_inference_model
from crystal_jax.errors import RequestError, UserError
from crystal_jax.sample.config import SampleConfig
from crystal_jax.sample.constraints.rules import Rules, merged_with
from crystal_jax.sample.engine.engine import PROMPTS_AT_ONCE, Engine
from crystal_jax.sample.engine.request import Completion
from crystal_jax.sample.rejection import RejectionSampler, SampleResult, SamplingSettings
from crystal_jax.sample.requests import CONSTRAINT_COLUMNS, FORMULA, NAME, check_trained_on, conditions_of
from crystal_jax.sample.sample_spec import SampleSpec, SampleSpecBuilder
from crystal_jax.sample.writer import SampleWriter
from crystal_jax.text.grammar.language import text_automaton
from crystal_jax.text.tokenizer import completion_text


class SampleRun:
    """The objects that the samples of a configuration are drawn with.

    Raises:
        UserError: no such checkpoint, or a setting that does not go with the model.
    """

    def __init__(self, config: SampleConfig):
        self.config = config
        self._limits = dict(config.limits)
        self._model = load_inference_model(config.checkpoint, step=config.step, mesh=config.mesh)
        self._trained, self._experiment = self._model.trained, self._model.experiment
        self._tokenizer, mesh = self._model.tokenizer, self._model.mesh
        self._hints = list(dict.fromkeys(name for one in config.conditions for name in conditions_of(one)))
        check_trained_on(self._hints, self._experiment.task, checkpoint=config.checkpoint)
        self._settings = list(itertools.product(config.temperature, config.top_p))
        try:
            self._automaton = text_automaton(self._tokenizer, self._experiment.text, max_atoms=config.max_atoms)
            self._constraints = self._default_constraints() if config.constraints is None else config.constraints
            self._specs = SampleSpecBuilder(
                config.conditions, self._rules(), self._automaton, self._tokenizer, self._experiment.text
            )
        except RequestError as error:
            raise UserError(str(error)) from error
        compositions = self._specs.make_compositions(
            self._trained.graph, self._experiment.model, mesh, seed=config.seed
        )
        self._total = config.num_samples * len(config.conditions)
        engine = Engine(
            self._trained.graph,
            self._experiment.model,
            self._automaton,
            mesh=mesh,
            rows=min(config.batch_size, self._total),
            prompt_tokens=self._specs.head_tokens,
            prompts_at_once=1 if self._specs.has_one_head else PROMPTS_AT_ONCE,
            coded=config.kv_cache == "int8",
            sorted_sites=self._experiment.task.order == "sorted",
        )
        self._sampler = RejectionSampler(
            engine,
            self._trained.params,
            self._specs,
            compositions,
            symbols_of=lambda spec, drawn: self._experiment.text.decode(self._text(spec, drawn)).symbols,
        )

    def _default_constraints(self) -> tuple[str, ...]:
        can_measure = self._automaton.separate and self._experiment.text.coordinates == "fractional"
        return ("distance",) if can_measure else ()

    def _rules(self) -> Rules:
        config = self.config
        rules = Rules(
            constraints=frozenset(self._constraints),
            max_atoms=config.max_atoms,
            oxidation_states=config.oxidation_states,
            min_distance=config.min_distance,
            min_radius_factor=config.min_radius_factor,
            hints_only=config.hints_only,
        )
        return merged_with(rules, self._limits)

    def request(self) -> dict[str, Any]:
        """Returns what decides the samples, for `run.json`: a folder is continued by the same request only."""
        config = self.config
        texts, used = self._specs.texts, self._specs.constraints
        kept = FORMULA in self._hints and not config.hints_only
        own = [{name: value for name, value in one.items() if name in CONSTRAINT_COLUMNS} for one in config.conditions]
        return {
            **self._model.checkpoint_request(),
            "prompt": texts[0] if len(texts) == 1 else _digest("\0".join(texts)),
            "requests": len(texts),
            # What is enforced for every sample, and what is only in the prompt.
            "limits": self._limits | ({"formula": "the requested one"} if kept else {}),
            "hints": [name for name in self._hints if name != FORMULA or config.hints_only],
            "limits_of_requests": _digest(json.dumps(own)) if any(own) else None,
            "constraints": sorted(self._constraints),
            "oxidation_states": config.oxidation_states if "charge" in used else None,
            "min_distance": config.min_distance if "distance" in used else None,
            "min_radius_factor": config.min_radius_factor if "distance" in used else None,
            "max_atoms": config.max_atoms,
            "max_retries": config.max_retries,
            "kv_cache": config.kv_cache,
            "seed": config.seed,
            **self._model.text_request(),
            "site_order": self._experiment.task.order,
        }

    def write(self, *, command: str) -> Path:
        """Draws the samples that are missing on disk; returns `samples.csv`, or the output with several settings.

        Args:
            command: The command line, for `run.json` and reports.

        Raises:
            UserError: the output holds samples of another request.
        """
        written = []
        for temperature, top_p in self._settings:
            folder = Path(self.config.output)
            if len(self._settings) > 1:
                folder /= f"temperature={temperature},top_p={top_p}"
            request = self.request() | {"temperature": temperature, "top_p": top_p}
            writer = SampleWriter(folder, request, total=self._total, command=command)
            settings = SamplingSettings(
                seed=self.config.seed, temperature=temperature, top_p=top_p, max_retries=self.config.max_retries
            )
            results = self._sampler.draw(writer.missing, settings)
            with contextlib.closing(results):  # a full disk ends the threads that draw, too
                writer.write(map(self._row, results))
            written.append(
                writer.finish(self._experiment.text, model_name=self._trained.name, extxyz=self.config.extxyz)
            )
        return written[0] if len(written) == 1 else Path(self.config.output)

    def _text(self, spec: SampleSpec, drawn: Completion) -> str:
        return completion_text(self._tokenizer, spec.text, spec.head, drawn.ids)

    def _row(self, result: SampleResult) -> dict[str, Any]:
        """Returns the line of `samples.jsonl`."""
        spec, drawn, num_restarts = result
        text = self._text(spec, drawn)
        log_probs, log_allowed_mass = spec.log_probs(drawn)
        if drawn.complete:
            self._experiment.text.decode(text)  # cannot fail: the grammar admits readable texts only
        system = {name: self._limits[name] for name in ("chemical_system",) if name in self._limits}
        return {
            "index": drawn.request.index,
            "status": "complete" if drawn.complete else "dead end",
            "request": {name: value for name, value in (system | dict(spec.asked)).items() if name != NAME},
            "request_number": self._specs.number_of(drawn.request.index),
            "request_name": spec.asked.get(NAME, ""),
            "seed": self.config.seed,
            "prompt": spec.text,
            "text": text,
            "tokens": len(spec.head) - len(spec.prompt) + len(drawn.ids) + 1,
            "log_prob": round(sum(log_probs), 4),
            "token_log_probs": [round(value, 4) for value in log_probs],
            "log_allowed_mass": round(log_allowed_mass, 4),
            "num_restarts": num_restarts,
            "constraints": sorted(spec.rules.constraints),
            "checkpoint": self._trained.name,
            "text_format": self._experiment.text.version,
        }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
