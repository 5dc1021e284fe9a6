"""Flags of `crystal-jax evaluate`, and the energy options that they define."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from absl import flags

from crystal_jax.energy.relax import RelaxSettings
from crystal_jax.errors import UserError
from crystal_jax.evaluate import coverage
from crystal_jax.evaluate.oxidation import OXIDATION_STATES

MODES = ("default", "paper")
FINGERPRINTS = ("none", "reference", "all")


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags of `crystal-jax evaluate`."""
    flags.DEFINE_string(
        "samples",
        None,
        "CSV with a column cif, folder of *.cif, .extxyz, or .pt.",
        required=True,
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        "output", None, "Folder for metrics.json and structures.csv.", required=True, flag_values=flag_values
    )
    flags.DEFINE_string(
        "reference",
        None,
        "Real crystals to compare distributions with: CSV, folder of *.cif, or data set as DIR[:split], by "
        "default its split 'test'.",
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        "train_reference",
        None,
        "Crystals the model was trained on, for novelty: as --reference, by default the split 'train'.",
        flag_values=flag_values,
    )
    flags.DEFINE_enum("mode", "default", MODES, "How failures count; see above.", flag_values=flag_values)
    flags.DEFINE_enum(
        "oxidation_states",
        "smact14",
        OXIDATION_STATES,
        "SMACT's list of oxidation states: smact14 is behind the published figures, icsd24 is the newer one.",
        flag_values=flag_values,
    )
    flags.DEFINE_enum(
        "fingerprints",
        "reference",
        FINGERPRINTS,
        "For coverage and diversity, of samples and reference; all: of the training set too, for the paper's novelty. "
        "Some 0.1 s a crystal and core, once: they are kept in $CRYSTAL_JAX_CACHE.",
        flag_values=flag_values,
    )
    flags.DEFINE_enum(
        "coverage_cutoffs",
        "mp20",
        list(coverage.CUTOFFS),
        "The data set whose published cut-offs coverage uses.",
        flag_values=flag_values,
    )
    _define_energy_flags(flag_values)
    _define_file_flags(flag_values)
    flags.DEFINE_integer("workers", None, "Processes; by default one for each core.", flag_values=flag_values)
    flags.DEFINE_bool("progress", True, "Show progress bars.", flag_values=flag_values)


def _define_energy_flags(flag_values: flags.FlagValues) -> None:
    own = RelaxSettings()
    flags.DEFINE_string(
        "energy_model",
        "none",
        "Relax the valid samples with m3gnet (the paper's potential), chgnet, or matgl:NAME; none: do not.",
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        "energy_weights",
        None,
        "Folder of M3GNet's checkpoint MP-2021.2.8-EFS; by default it is fetched once, through pip.",
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        "hull",
        None,
        "Known materials: CSV with composition and formation_energy_per_atom, or JSON of computed entries.",
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        "hull_elements",
        None,
        "With a CSV: JSON of the elements' entries; by default *elemental-reference-entries.json* beside it.",
        flag_values=flag_values,
    )
    flags.DEFINE_float("fmax", own.fmax, "eV/Å at which a relaxation is done.", flag_values=flag_values)
    flags.DEFINE_integer("max_steps", own.max_steps, "Of the relaxation of a crystal.", flag_values=flag_values)
    flags.DEFINE_float("timeout", own.timeout, "Seconds for the relaxation of a crystal.", flag_values=flag_values)
    flags.DEFINE_integer("batch_atoms", own.batch_atoms, "Atoms relaxed together.", flag_values=flag_values)
    flags.DEFINE_string(
        "ray_address",
        None,
        "Relax on a Ray cluster: auto, HOST:PORT, or local for one begun in this machine.",
        flag_values=flag_values,
    )


def _define_file_flags(flag_values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "targets",
        None,
        "Known structures that the samples are predictions of, for match rate and RMSE: as --reference. Samples belong "
        "to the target of their name, or the first so many to the first.",
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        "scores", None, "scores.jsonl of 'crystal-jax score' on the same samples.", flag_values=flag_values
    )
    flags.DEFINE_list(
        "infill",
        [],
        "Folders that 'crystal-jax infill' wrote, for its accuracy; with the crystals in one's cif/ as samples, also "
        "for how many of the proposals are valid and metastable.",
        flag_values=flag_values,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnergyOptions:
    """Settings for relaxing crystals and comparing them with known materials.

    Attributes:
        model: "m3gnet", "chgnet" or "matgl:NAME".
        weights: folder of M3GNet's checkpoint; by default the cache.
        hull: file of known materials, see `energy.hull.read_hull`; without it, no energy above the hull is computed.
        hull_elements: file of the elements' energies, if `hull` is a CSV.
        settings: stopping criteria and batch size of relaxations.
        ray_address: address of a Ray cluster; by default the cores of this machine are used.
    """

    model: str
    weights: Path | None = None
    hull: Path | None = None
    hull_elements: Path | None = None
    settings: RelaxSettings = dataclasses.field(default_factory=RelaxSettings)
    ray_address: str | None = None


def energy_options(flag_values: flags.FlagValues) -> EnergyOptions | None:
    """Returns the energy options of the flags; None without an energy model.

    Raises:
        UserError: a hull is given without an energy model.
    """
    if flag_values.energy_model == "none":
        if flag_values.hull:
            raise UserError("--hull needs --energy_model, such as --energy_model=m3gnet")
        return None

    def path(name: str) -> Path | None:
        value = flag_values[name].value
        return Path(str(value)) if value else None

    return EnergyOptions(
        model=flag_values.energy_model,
        weights=path("energy_weights"),
        hull=path("hull"),
        hull_elements=path("hull_elements"),
        settings=RelaxSettings(
            fmax=flag_values.fmax,
            max_steps=flag_values.max_steps,
            timeout=flag_values.timeout,
            batch_atoms=flag_values.batch_atoms,
        ),
        ray_address=flag_values.ray_address,
    )
