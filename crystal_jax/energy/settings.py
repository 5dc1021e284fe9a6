"""Settings of relaxations, and the limits of the words "stable" and "metastable"; nothing heavy is imported here."""

from __future__ import annotations

import dataclasses

from crystal_jax.errors import UserError

METASTABLE = 0.1  # eV/atom above the hull, as in the paper
STABLE = 0.0  # eV/atom above the hull


@dataclasses.dataclass(frozen=True, kw_only=True)
class RelaxSettings:
    """Stopping criteria and batch size of relaxations.

    Attributes:
        fmax: eV/Å; a relaxation has converged when neither a force nor the stress times the volume per atom is larger.
        max_steps: largest number of steps of one crystal.
        timeout: largest time of one crystal in s: its share, by atoms, of the time of its batches.
        batch_atoms: number of atoms evaluated together on each device, by default what suits it; a larger crystal
            forms a batch of its own.
    """

    fmax: float = 0.1
    max_steps: int = 500
    timeout: float = 60.0
    batch_atoms: int | None = None

    def __post_init__(self) -> None:
        """Checks that all values are positive.

        Raises:
            UserError: a value is not positive.
        """
        for name, value in dataclasses.asdict(self).items():
            if value is not None and not value > 0:
                raise UserError(f"{name}={value} of a relaxation must be positive")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RelaxJob:
    """Settings that decide the results; a different job needs a different folder.

    Attributes:
        model: a name for `load_model`.
        weights: folder of the model's weights, or "".
        settings: stopping criteria and batch size.
    """

    model: str
    weights: str = ""
    settings: RelaxSettings = dataclasses.field(default_factory=RelaxSettings)
