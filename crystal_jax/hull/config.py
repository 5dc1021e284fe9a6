"""The settings of building a hull, written once: flags of the command and keyword arguments of `hull()`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from crystal_jax import arguments
from crystal_jax.energy.config import NO_MODEL, EnergyConfig
from crystal_jax.errors import UserError
from crystal_jax.flag_fields import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class HullConfig(EnergyConfig):
    """The settings of `crystal-jax hull`; the help of the flags says what each of them does.

    Raises:
        UserError: a setting has the wrong type, or is impossible.
    """

    output: str | Path = setting(None, "Folder for hull.csv.gz and hull.json; continued if it holds some of the work.")
    structures: Sequence[str | Path] = setting(
        (), "Known crystals: CSV with a column cif, folder of *.cif, .extxyz, or JSON of computed entries.", several=str
    )
    materials_project: bool = setting(
        False,
        "Take the crystals of --chemical_system from the Materials Project, through mp-api, with the key in "
        "$MP_API_KEY.",
    )
    max_e_above_hull: float = setting(
        0.1, "eV/atom by DFT, of crystals of the Materials Project: higher ones cannot be on the hull."
    )
    chemical_system: str | None = setting(None, "Keep crystals of these elements only, such as Li-P-S.")
    num_prototypes: int = setting(
        0,
        "Crystals built for each stable compound of the Materials Project that is not among the known crystals: one in "
        "the structure of a known crystal of its space group, further ones in those with the most similar elements.",
        bounds=(0, None),
    )
    elemental_references: bool = setting(
        True, "Include the stable crystals of the elements, which this package builds and relaxes."
    )
    embedded: bool = setting(True, "Include the materials in the package, if their energies are of the same potential.")
    fmax: float = setting(0.05, "eV/Å at which a relaxation is done.")

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "output", arguments.path("output", self.output))
        paths = [self.structures] if isinstance(self.structures, str | Path) else self.structures
        object.__setattr__(self, "structures", tuple(arguments.path("structures", path) for path in paths))
        if not self.structures and not self.materials_project:
            raise UserError("no known crystals: give --structures=FILE or --materials_project")
        if self.elements is None and self.materials_project:
            raise UserError("--materials_project needs --chemical_system, such as --chemical_system=Li-P-S")
        if self.energy_model == NO_MODEL:
            raise UserError("a hull needs energies: --energy_model=m3gnet")

    @property
    def elements(self) -> frozenset[str] | None:
        """The elements of the chemical system; None for all.

        Raises:
            UserError: one of them is no element.
        """
        if not self.chemical_system:
            return None
        # Late, because it takes a second.
        from pymatgen.core import Element

        symbols = self.chemical_system.split("-")
        if wrong := [symbol for symbol in symbols if not Element.is_valid_symbol(symbol)]:
            raise UserError(f"--chemical_system={self.chemical_system}: {wrong[0]!r} is no element; write Li-P-S")
        return frozenset(symbols)
