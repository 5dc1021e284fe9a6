"""The settings of an evaluation, written once: flags of the command and keyword arguments of `evaluate()`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from crystal_jax import arguments
from crystal_jax.energy.config import NO_MODEL, EnergyConfig
from crystal_jax.errors import UserError
from crystal_jax.evaluate.cutoffs import CUTOFFS
from crystal_jax.flag_fields import setting

if TYPE_CHECKING:
    from pymatgen.core import Structure

MODES = ("default", "paper")
FINGERPRINTS = ("none", "reference", "all")
OXIDATION_STATES = ("smact14", "icsd24")  # files of the folder `tables`


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig(EnergyConfig):
    """The settings of `crystal-jax evaluate`; the help of the flags says what each of them does.

    Attributes that take more than their flags do:
        samples: A path, or structures in memory.
        output: A folder for the files; None writes none.
        reference, train_reference, targets: A path, a prepared data set as "DIR[:split]", or structures in memory.

    Raises:
        UserError: a setting has the wrong type, or is impossible.
    """

    samples: str | Path | Sequence[Structure] = setting(
        None, "CSV with a column cif, folder of *.cif, .extxyz, or .pt."
    )
    output: str | Path | None = setting(None, "Folder for metrics.json and structures.csv.")
    reference: str | Path | Sequence[Structure] | None = setting(
        None,
        "Real crystals to compare distributions with: CSV, folder of *.cif, or data set as DIR[:split], by default its "
        "split 'test'.",
    )
    train_reference: str | Path | Sequence[Structure] | None = setting(
        None, "Crystals the model was trained on, for novelty: as --reference, by default the split 'train'."
    )
    mode: str = setting("default", "How failures count; see above.", choices=MODES)
    oxidation_states: str = setting(
        "smact14",
        "SMACT's list of oxidation states: smact14 is behind the published figures, icsd24 is the newer one.",
        choices=OXIDATION_STATES,
    )
    fingerprints: str = setting(
        "reference",
        "For coverage and diversity, of samples and reference; all: of the training set too, for the paper's novelty. "
        "Some 0.1 s a crystal and core, once: they are kept in $CRYSTAL_JAX_CACHE.",
        choices=FINGERPRINTS,
    )
    coverage_cutoffs: str = setting(
        "mp20", "The data set whose published cut-offs coverage uses.", choices=tuple(CUTOFFS)
    )
    energy_model: str = setting(
        NO_MODEL,
        "Relax the valid samples with a potential: m3gnet (the paper's), nequix (newer, slower), chgnet, matgl:NAME, "
        "or ase:MODULE:FACTORY, a function that returns an ASE calculator; none: do not.",
    )
    hull: str | Path | None = setting(
        None,
        "Known materials: what 'crystal-jax hull' wrote, CSV with composition and formation_energy_per_atom, or JSON "
        "of computed entries. By default, with m3gnet, the materials in the package, whose energies are M3GNet's too.",
    )
    hull_elements: str | Path | None = setting(
        None, "With a CSV: JSON of the elements' entries; by default *elemental-reference-entries.json* beside it."
    )
    targets: str | Path | Sequence[Structure] | None = setting(
        None,
        "Known structures that the samples are predictions of, for match rate and RMSE: as --reference. Samples belong "
        "to the target of their name, or the first so many to the first.",
    )
    scores: str | Path | None = setting(None, "scores.jsonl of 'crystal-jax score' on the same samples.")
    infill: Sequence[str | Path] = setting(
        (),
        "Folders that 'crystal-jax infill' wrote, for its accuracy; with the crystals in one's cif/ as samples, also "
        "for how many of the proposals are valid and metastable.",
        several=str,
    )

    def __post_init__(self) -> None:
        for name, what, choices in (
            ("mode", "mode", MODES),
            ("oxidation_states", "oxidation states", OXIDATION_STATES),
            ("fingerprints", "fingerprints of", FINGERPRINTS),
            ("coverage_cutoffs", "cut-offs of", tuple(CUTOFFS)),
        ):
            if (value := getattr(self, name)) not in choices:
                raise UserError(f"no {what} {value!r}; --{name} is one of {', '.join(choices)}")
        super().__post_init__()
        for name in ("output", "hull", "hull_elements", "scores"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, arguments.path(name, value))
        folders = [self.infill] if isinstance(self.infill, str | Path) else self.infill
        object.__setattr__(self, "infill", tuple(arguments.path("infill", folder) for folder in folders))
        if self.hull and not self.has_energies:
            raise UserError("--hull needs --energy_model, such as --energy_model=m3gnet")
