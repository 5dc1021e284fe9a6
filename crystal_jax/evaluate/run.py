"""Judges generated crystals: validity, distributions, uniqueness, novelty.

Reads samples (`samples.csv` of 'crystal-jax sample', any CSV with a column `cif`, a folder of *.cif files, extended
XYZ, or CDVAE's eval_gen_*.pt) and writes to --output:

  metrics.json     every rate with its value, hits and total; distances; histograms; versions and settings
  structures.csv   one row for each sample: formula, density, space group, which checks it passes and why not
  candidates.csv   the valid, unique and new ones, ranked by their energy above the hull

With --reference the valid samples are compared with real crystals: densities, numbers of elements, and coverage by
fingerprints of structure and composition; with --train_reference the share of valid samples that are not in the
training set is measured. Both take a CSV, a folder of *.cif, or a data set of
'crystal-jax prepare' as DIR or DIR:split.

With --energy_model the valid samples are relaxed and, with --hull, placed above the convex hull of known materials:
the rates metastable (below 0.1 eV/atom), stable (below 0), and of those that are also unique and new. Each relaxation
is kept in OUTPUT/relaxations as soon as it is finished; the same command goes on where it was stopped.

--mode=default   a sample that does not parse counts as a failure in the rates
--mode=paper     as published: samples that do not parse leave the rates, more than 10,000 samples are
                 replaced by 10,000 drawn with replacement, Zr has SMACT's old electronegativity of 0.33, a sample
                 without a fingerprint is not valid, and coverage is of valid crystals by valid crystals
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from absl import flags

from crystal_jax.errors import UserError
from crystal_jax.evaluate import (
    conditions,
    coverage,
    magpie,
    metrics,
    model_files,
    novelty,
    prediction,
    resemblance,
    structures,
    symmetry,
    validity,
)
from crystal_jax.evaluate.candidates import candidates
from crystal_jax.evaluate.energy.relax import RelaxSettings
from crystal_jax.evaluate.fingerprints import CACHE
from crystal_jax.evaluate.oxidation import OXIDATION_STATES, load_oxidation_table
from crystal_jax.evaluate.samples import Sample, read_entries, read_reference
from crystal_jax.files import write_text
from crystal_jax.provenance import versions

MODES = ("default", "paper")
PACKAGES = ("pymatgen", "pymatgen-core", "spglib", "scipy", "numpy", "pandas")
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
    """How crystals are relaxed and compared with known materials.

    Attributes:
        model: "m3gnet", "chgnet" or "matgl:NAME".
        weights: folder of M3GNet's checkpoint; by default the cache.
        hull: file of known materials, see `energy.hull.read_hull`; without it there is no energy above the hull.
        hull_elements: file of the elements' energies, if `hull` is a CSV.
        settings: when a relaxation ends.
        ray_address: of a Ray cluster; by default the cores of this machine.
    """

    model: str
    weights: Path | None = None
    hull: Path | None = None
    hull_elements: Path | None = None
    settings: RelaxSettings = dataclasses.field(default_factory=RelaxSettings)
    ray_address: str | None = None


def _energy_options(flag_values: flags.FlagValues) -> EnergyOptions | None:
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


def main(flag_values: flags.FlagValues) -> None:
    """Runs `crystal-jax evaluate`."""
    result = evaluate(
        Path(flag_values.samples),
        output=Path(flag_values.output),
        reference=flag_values.reference,
        train_reference=flag_values.train_reference,
        mode=flag_values.mode,
        oxidation_states=flag_values.oxidation_states,
        fingerprints_of=flag_values.fingerprints,
        coverage_cutoffs=flag_values.coverage_cutoffs,
        energy=_energy_options(flag_values),
        targets=flag_values.targets,
        scores=Path(flag_values.scores) if flag_values.scores else None,
        infill=[Path(folder) for folder in flag_values.infill],
        workers=flag_values.workers,
        progress=flag_values.progress,
    )
    print(metrics.summary(result))
    print(f"\nwritten: {flag_values.output}/metrics.json, structures.csv, candidates.csv")


def evaluate(
    samples: Path,
    *,
    output: Path,
    reference: str | None = None,
    train_reference: str | None = None,
    mode: str = "default",
    oxidation_states: str = "smact14",
    fingerprints_of: str = "reference",
    coverage_cutoffs: str = "mp20",
    energy: EnergyOptions | None = None,
    targets: str | None = None,
    scores: Path | None = None,
    infill: Sequence[Path] = (),
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Judges crystals and writes `metrics.json` and `structures.csv`.

    Args:
        samples: CSV with a column `cif` (an empty one is a sample that did not parse), folder of `*.cif`, extended XYZ,
            or CDVAE's tensors (`.pt`).
        output: folder to write to.
        reference: crystals to compare distributions with: CSV, folder, or prepared data set as "DIR[:split]".
        train_reference: crystals the model has seen, given likewise; without it there is no novelty.
        mode: "default" or "paper", see the module's docstring.
        oxidation_states: "smact14" or "icsd24".
        fingerprints_of: "none", "reference" (samples and reference: coverage, diversity) or "all" (the training set
            too: novelty by fingerprint).
        coverage_cutoffs: the data set whose published cut-offs are used: "mp20", "perov5" or "carbon24".
        energy: how the valid samples are relaxed; by default they are not.
        targets: known structures that the samples are predictions of, given as `reference`.
        scores: `scores.jsonl` of 'crystal-jax score' on the same samples.
        infill: folders that 'crystal-jax infill' wrote.
        workers: processes; by default one for each core.
        progress: whether to show progress bars.

    Returns:
        The contents of `metrics.json`.

    Raises:
        UserError: an input is missing or unreadable, or an option has no such value.
    """
    if mode not in MODES:
        raise UserError(f"no mode {mode!r}; --mode is one of {', '.join(MODES)}")
    if fingerprints_of not in FINGERPRINTS:
        raise UserError(f"no fingerprints of {fingerprints_of!r}; --fingerprints is one of {', '.join(FINGERPRINTS)}")
    if coverage_cutoffs not in coverage.CUTOFFS:
        known = ", ".join(coverage.CUTOFFS)
        raise UserError(f"no cut-offs of {coverage_cutoffs!r}; --coverage_cutoffs is one of {known}")
    start = time.monotonic()
    table = load_oxidation_table(oxidation_states, zr_as_in_paper=mode == "paper")
    # All inputs are opened before the first long loop, so that a wrong path fails at once.
    entries = read_entries(Path(samples))
    real = read_reference(reference, default_split="test") if reference else []
    train = read_reference(train_reference, default_split="train") if train_reference else None

    wanted = read_reference(targets, default_split="test") if targets else None
    stage = _Stability.of(energy, Path(output) / "relaxations") if energy else None

    parsed = structures.parse_all(entries, progress=progress)
    rows = structures.describe(parsed, table, progress=progress)
    structures.compare(rows, parsed, train, progress=progress)
    real_samples = structures.parse_all(real, what="reference", progress=progress)
    prints = None
    if reference and fingerprints_of != "none":
        seen = train if fingerprints_of == "all" else None
        prints = resemblance.take(
            parsed,
            rows,
            real_samples,
            None if seen is None else structures.parse_all(seen, what="training set", progress=progress),
            table=table,
            mode=mode,
            workers=workers,
            progress=progress,
        )
    if stage:
        stage.run(parsed, rows, mode=mode, workers=workers, progress=progress)
    judged = metrics.judged_rows(rows, mode)
    real_properties = structures.properties(real_samples)
    cutoffs = coverage.CUTOFFS[coverage_cutoffs]
    result = {
        **metrics.rates(rows, judged, with_novelty=train is not None),
        **metrics.distances(judged, real_properties),
        **(resemblance.metrics_of(rows, judged, prints, cutoffs=cutoffs, mode=mode) if prints else {}),
        **(stage.metrics(rows, judged, mode=mode) if stage else {}),
        **conditions.metrics_of(entries, parsed, rows),
        **(prediction.metrics_of(parsed, structures.parse_all(wanted), progress=progress) if wanted else {}),
        **(model_files.scores(Path(scores), rows) if scores else {}),
        **(model_files.infilling(infill, rows) if infill else {}),
        "spacegroups": symmetry.comparison(
            judged.loc[judged["valid"], "spacegroup"].dropna().astype(int).tolist(),
            symmetry.spacegroups(real_samples, workers=workers),
        ),
        "samples": {
            "path": str(Path(samples).resolve()),
            "read": len(rows),
            "without_structure": int(rows["density"].isna().sum()),
            "judged": len(judged),
            "models": sorted({entry.model for entry in entries if entry.model}),
        },
        "reference": reference and {"path": reference, "read": len(real), "used": len(real_properties)},
        "train_reference": train_reference and {"path": train_reference, "read": len(train or [])},
        "failures": metrics.failures(rows),
        "mode": mode,
        "settings": {
            "oxidation_states": table.name,
            "paper_draw_seed": metrics.PAPER_DRAW_SEED if mode == "paper" else None,
            "electronegativity_zr": table.electronegativity["Zr"],
            "min_distance_angstrom": validity.MIN_DISTANCE,
            "min_volume_cubic_angstrom": validity.MIN_VOLUME,
            "matcher": novelty.MATCHER,
            "matcher_loose": novelty.LOOSE_MATCHER,
            "spacegroup_symprec_angstrom": symmetry.PRECISION,
            "coverage_cutoffs": dataclasses.asdict(cutoffs) if prints else None,
            "novelty_cutoffs": dataclasses.asdict(coverage.NOVELTY) if prints and prints.train else None,
            "energies": stage.settings() if stage else None,
            "fingerprint_tables": [*magpie.TABLES, CACHE] if prints else None,
        },
        "versions": versions((*PACKAGES, *(("torch",) if energy and energy.ray_address is None else ()))),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - start, 1),
    }
    write_text(Path(output) / "structures.csv", rows.to_csv(index=False))
    write_text(Path(output) / "candidates.csv", candidates(rows).to_csv(index=False))
    write_text(Path(output) / "metrics.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
    return result


@dataclasses.dataclass
class _Stability:
    """The part of an evaluation that needs energies; loads what it needs when it is made, so that errors come early."""

    job: Any
    folder: Path
    hull: Any
    ray_address: str | None
    found: Any = None

    @classmethod
    def of(cls, options: EnergyOptions, folder: Path) -> _Stability:
        from crystal_jax.evaluate.energy.hull import read_hull
        from crystal_jax.evaluate.energy.jobs import RelaxJob
        from crystal_jax.evaluate.energy.model import load_model

        hull = read_hull(options.hull, elements=options.hull_elements) if options.hull else None
        if options.ray_address is None:
            load_model(options.model, weights=options.weights)
        job = RelaxJob(model=options.model, weights=str(options.weights or ""), settings=options.settings)
        return cls(job, folder, hull, options.ray_address)

    def run(
        self, samples: Sequence[Sample], rows: pd.DataFrame, *, mode: str, workers: int | None, progress: bool
    ) -> None:
        from crystal_jax.evaluate import stability

        self.found = stability.relax_valid(
            samples,
            rows,
            self.job,
            self.folder,
            mode=mode,
            workers=workers,
            ray_address=self.ray_address,
            progress=progress,
        )
        stability.fill_in(rows, samples, self.found, self.hull, progress=progress)

    def metrics(self, rows: pd.DataFrame, judged: pd.DataFrame, *, mode: str) -> dict[str, Any]:
        from crystal_jax.evaluate import stability

        return stability.metrics_of(rows, judged, self.hull, mode=mode)

    def settings(self) -> dict[str, Any]:
        from crystal_jax.evaluate import stability

        return stability.settings_of(self.found, self.hull)
