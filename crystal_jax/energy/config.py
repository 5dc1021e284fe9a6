"""The settings of energies and relaxations, which several commands share; nothing heavy is imported here."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from crystal_jax import arguments
from crystal_jax.energy.settings import RelaxJob, RelaxSettings
from crystal_jax.flag_fields import setting

NO_MODEL = "none"
_RELAX = RelaxSettings()


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnergyConfig:
    """The settings of energies and relaxations; the help of the flags says what each of them does.

    Raises:
        UserError: a setting has the wrong type, or is impossible.
    """

    energy_model: str = setting(
        "m3gnet",
        "Potential: m3gnet (the paper's), nequix (newer, slower), chgnet, matgl:NAME, or ase:MODULE:FACTORY, a "
        "function that returns an ASE calculator.",
    )
    energy_weights: str | Path | None = setting(
        None, "Folder or file of the potential's weights; by default they are fetched once."
    )
    fmax: float = setting(_RELAX.fmax, "eV/Å at which a relaxation is done.")
    max_steps: int = setting(_RELAX.max_steps, "Of the relaxation of a crystal.")
    timeout: float = setting(_RELAX.timeout, "Seconds for the relaxation of a crystal.")
    batch_atoms: int | None = setting(
        _RELAX.batch_atoms, "Atoms relaxed together on a device; by default what suits it."
    )
    ray_address: str | None = setting(
        None, "Relax on a Ray cluster: auto, HOST:PORT, or local for one begun in this machine."
    )
    workers: int | None = setting(None, "Processes; by default one for each core.")
    progress: bool = setting(True, "Show progress bars.")

    def __post_init__(self) -> None:
        if self.workers is not None:
            arguments.whole("workers", self.workers, least=1, most=10_000)
        if self.energy_weights is not None:
            object.__setattr__(self, "energy_weights", arguments.path("energy_weights", self.energy_weights))
        _ = self.relax  # a wrong number fails now

    @property
    def has_energies(self) -> bool:
        """Whether crystals are relaxed."""
        return self.energy_model != NO_MODEL

    @property
    def relax(self) -> RelaxSettings:
        """The settings of relaxations."""
        return RelaxSettings(
            fmax=self.fmax, max_steps=self.max_steps, timeout=self.timeout, batch_atoms=self.batch_atoms
        )

    @property
    def relax_job(self) -> RelaxJob:
        """The model and the settings of relaxations."""
        return RelaxJob(model=self.energy_model, weights=str(self.energy_weights or ""), settings=self.relax)
