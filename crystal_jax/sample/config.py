"""The settings of a sampling run, written once: command-line flags, `run.json` and keyword arguments come from here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crystal_jax import arguments
from crystal_jax.checkpoint.model_flags import ModelSettings
from crystal_jax.errors import UserError
from crystal_jax.flag_fields import setting
from crystal_jax.sample.request_flags import MAX_ATOMS, LimitSettings, check_numbers
from crystal_jax.sample.requests import CONSTRAINT_COLUMNS, Asked, parse_request, parse_requests

MIN_RADIUS_FACTOR = 0.7  # of evaluate/chemistry/validity.py, which is not imported for --help


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleConfig(ModelSettings, LimitSettings):
    """The settings of `crystal-jax sample`; the help of the flags says what each of them does.

    Types are those after construction. A single number or request, a list, or words separated by commas become tuples.

    Attributes that are no flags, or that take more than their flags do:
        output: Directory for the samples; continued if it holds some of the same request.
        conditions: Properties to ask for, by the names of `CONDITIONS` in `text/prompts.py`; or several such requests.
            A request may also have limits of its own, by the names of `CONSTRAINT_COLUMNS`, which add to those of the
            run. A space group is a number or a symbol.
        temperature, top_p: A number or several; several make one folder for each pair.
        constraints: None is the default of the text format; () or "none" is none.

    Raises:
        UserError: a setting has the wrong type, or is impossible.
    """

    output: str | Path
    num_samples: int = setting(1000, "How many crystals there will be, for each line of --requests.")
    temperature: tuple[float, ...] = setting(
        (1.0,), "Lower is more likely and less diverse; 0 is greedy. 0.7,1.0 draws with both.", several=float
    )
    top_p: tuple[float, ...] = setting(
        (1.0,), "Nucleus: draw from this share of the probability; or several.", several=float
    )
    conditions: tuple[Asked, ...] = ()
    hints_only: bool = setting(
        False, "A formula that you ask for is a hint as well: the composition need not be a multiple of it."
    )
    constraints: tuple[str, ...] | None = setting(
        None,
        "Limits, of: charge (charges can balance), distance (the angles form a cell, atoms keep the distance that "
        "their radii ask for, and the cell is not mostly empty), lattice (of the requested space group's lattice "
        "system), formula (kept to anyway); or none. By default distance, where texts have fractional coordinates.",
        several=str,
    )
    oxidation_states: str = setting("smact14", "The table for charge.", choices=("smact14", "icsd24"))
    min_distance: float = setting(0.5, "For distance: between atoms, in Å.")
    min_radius_factor: float = setting(
        MIN_RADIUS_FACTOR,
        "For distance: or this share of the sum of their covalent radii, if that is more. 0: --min_distance alone "
        "counts, and cells may be as empty as they like.",
    )
    max_retries: int = setting(
        8,
        "How often a crystal that violates its composition, a constraint or the order of its sites is retried before "
        "another composition is drawn. 0: masks enforce composition and constraints from the start.",
    )
    batch_size: int = setting(128, "Slots decoded side by side; no influence on the samples.")
    kv_cache: str = setting(
        "model",
        "Keep keys and values in the model's type, or in 8 bits: of long texts in bfloat16, twice as many slots fit.",
        choices=("model", "int8"),
    )
    seed: int = setting(0, "The same seed gives the same samples; sample i depends on it and on i alone.")
    extxyz: bool = setting(False, "Write samples.extxyz as well.")

    def __post_init__(self) -> None:
        check_numbers(
            num_samples=self.num_samples,
            batch_size=self.batch_size,
            max_retries=self.max_retries,
            max_atoms=self.max_atoms,
            seed=self.seed,
        )
        constraints = self.constraints
        if constraints is not None:
            constraints = tuple(name for name in arguments.words("constraints", constraints) if name != "none")
        normal = dict(
            output=arguments.path("output", self.output),
            constraints=constraints,
            temperature=tuple(arguments.numbers("temperature", self.temperature)),
            top_p=tuple(arguments.numbers("top_p", self.top_p)),
            conditions=tuple(parse_requests(self.conditions)),
        )
        for name, value in normal.items():
            object.__setattr__(self, name, value)
        for temperature in self.temperature:
            if not 0 <= temperature < float("inf"):
                raise UserError(f"temperature must be 0 or more, not {temperature}")
        for top_p in self.top_p:
            if not 0 < top_p <= 1:
                raise UserError(f"top_p must be above 0 and at most 1, not {top_p}")

    @property
    def limits(self) -> Mapping[str, Any]:
        """Returns the limits on every sample, parsed, by the names of `CONSTRAINT_COLUMNS`.

        Raises:
            UserError: a limit cannot be read.
        """
        values = {name: getattr(self, name) for name in CONSTRAINT_COLUMNS if name != "constraints"}
        return parse_request(values | {"max_atoms": self.max_atoms if self.max_atoms != MAX_ATOMS else None})
