"""The settings of infilling, written once: command-line flags, `run.json` and keyword arguments come from here."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from crystal_jax import arguments
from crystal_jax.checkpoint.model_flags import ModelSettings
from crystal_jax.errors import UserError
from crystal_jax.flag_fields import setting
from crystal_jax.infill.radii import TOLERANCE

CONSTRAINTS = ("charge", "radius")


@dataclasses.dataclass(frozen=True, kw_only=True)
class InfillConfig(ModelSettings):
    """The settings of `crystal-jax infill`; the help of the flags says what each of them does.

    Attributes that are no flags, or of which the help says less:
        checkpoint: See `ModelSettings`; trained with infilling.
        cif: The crystal. Its sites are sorted if the model was trained on sorted sites; they are not translated.
        output: Directory, new or of the same request.
        element, site: One of the two says which element is replaced.
        constraints: `radius` allows the elements that `elements_of_similar_radius` returns; `charge` allows those with
            which the whole composition is valid by the evaluator's rule.
        radius_tolerance: Tolerance of the radius rule, and of the baseline, in Å.

    Raises:
        UserError: a setting has the wrong type, or is impossible.
    """

    cif: Path
    output: Path
    element: str | None = setting(None, "The element to replace, such as Fe.")
    site: int | None = setting(None, "Or a site whose element it is: its number from 0, as pymatgen reads the file.")
    temperature: float = setting(1.0, "Probabilities are raised to 1/temperature, then normalised.")
    top_k: int = setting(10, "How many elements are shown and written as CIF.")
    constraints: tuple[str, ...] = setting(
        (),
        "Allow only elements of a similar ionic radius (radius; see --radius_tolerance), only elements with which "
        "charges can balance (charge), or both.",
        several=str,
    )
    radius_tolerance: float = setting(TOLERANCE, "Radii in Å differ by less, in a shared oxidation state.")
    oxidation_states: str = setting("smact14", "The table for --constraints=charge.", choices=("smact14", "icsd24"))
    batch_size: int = setting(32, "Elements scored side by side.")

    def __post_init__(self):
        if not 0 < self.temperature < float("inf"):
            raise UserError(f"temperature must be positive, not {self.temperature}")
        if self.top_k < 1 or self.batch_size < 1:
            raise UserError(f"top_k={self.top_k} and batch_size={self.batch_size} must be positive")
        constraints = tuple(arguments.words("constraints", self.constraints))
        if unknown := sorted(set(constraints) - set(CONSTRAINTS)):
            raise UserError(f"constraints has {', '.join(unknown)}; there are radius and charge")
        normal = dict(
            cif=arguments.path("cif", self.cif), output=arguments.path("output", self.output), constraints=constraints
        )
        for name, value in normal.items():
            object.__setattr__(self, name, value)
