"""The settings of relaxing given crystals, written once: flags of the command and keyword arguments of `relax()`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from crystal_jax import arguments
from crystal_jax.energy.config import NO_MODEL, EnergyConfig
from crystal_jax.errors import UserError
from crystal_jax.flag_fields import setting

if TYPE_CHECKING:
    from pymatgen.core import Structure


@dataclasses.dataclass(frozen=True, kw_only=True)
class RelaxConfig(EnergyConfig):
    """The settings of `crystal-jax relax`; the help of the flags says what each of them does.

    Attributes that take more than their flags do:
        structures: A path, or structures in memory.
        output: A folder for the files; None writes none.

    Raises:
        UserError: a setting has the wrong type, or is impossible.
    """

    structures: str | Path | Sequence[Structure] = setting(
        None, "The crystals: CSV with a column cif, folder of *.cif, POSCAR, .extxyz, or JSON of pymatgen's structures."
    )
    output: str | Path | None = setting(None, "Folder for relaxed.csv and cif/; continued if it holds some of them.")
    hull: str | Path | None = setting(
        None, "As of 'crystal-jax evaluate'; by default the materials in the package, if the potential has any."
    )
    hull_elements: str | Path | None = setting(None, "As of 'crystal-jax evaluate'.")
    symprec: float = setting(0.1, "Å, within which atoms count as equivalent in the conventional cells.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("output", "hull", "hull_elements"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, arguments.path(name, value))
        if not self.has_energies:
            raise UserError(f"--energy_model={NO_MODEL} relaxes nothing; use m3gnet")
        if not self.symprec > 0:
            raise UserError(f"symprec={self.symprec} must be positive")
