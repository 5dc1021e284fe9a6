"""Evaluates generated crystals: validity, distributions, uniqueness, novelty, stability.

Reads samples (`samples.csv` of 'crystal-jax sample', any CSV with a column `cif`, CIF files, folders and archives of
them, POSCAR, extended XYZ, JSON of pymatgen's structures, or CDVAE's eval_gen_*.pt) and writes to --output:

  metrics.json     every rate with its value, hits and total; distances; histograms; versions and settings
  structures.csv   one row per sample: formula, density, space group, the checks it passes and reasons for failures
  candidates.csv   the valid, unique and new samples; ranked if there are energies above the hull
  candidates/      their CIF files; relaxed crystals where there was a relaxation

--reference compares the valid samples with real crystals: densities, numbers of elements, and coverage by
fingerprints of structure and composition. --train_reference measures the share of valid samples that are not in the
training set. Both take a CSV, a folder of *.cif, or a data set of 'crystal-jax prepare' as DIR or DIR:split.

--energy_model relaxes the valid samples. With --hull, their energies above the convex hull of known materials are
computed: the rates metastable (below 0.1 eV/atom), stable (below 0), and the rates of samples that are also unique and
new. Each relaxation is saved in OUTPUT/relaxations as soon as it has finished; after an interruption, the same command
continues from there.

--mode=default   a sample that does not parse counts as a failure in the rates
--mode=paper     as published: samples that do not parse are left out of the rates, more than 10,000 samples are
                 replaced by 10,000 drawn with replacement, Zr has SMACT's old electronegativity of 0.33, a sample
                 without a fingerprint is not valid, and coverage compares valid samples with valid real crystals
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib.util
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from absl import flags

from crystal_jax import arguments
from crystal_jax.errors import UserError
from crystal_jax.evaluate import (
    conditions,
    coverage,
    dft_runs,
    magpie,
    metrics,
    novelty,
    prediction,
    structures,
    symmetry,
    validity,
)
from crystal_jax.evaluate import external_results as model_files
from crystal_jax.evaluate import fingerprint_metrics as resemblance
from crystal_jax.evaluate.candidates import missing_for_a_rank
from crystal_jax.evaluate.evaluation import write_evaluation
from crystal_jax.evaluate.fingerprints import CACHE
from crystal_jax.evaluate.known_materials import KnownMaterials, load_known_materials, reduced
from crystal_jax.evaluate.options import FINGERPRINTS, MODES, EnergyOptions, energy_options
from crystal_jax.evaluate.options import define_flags as define_flags  # re-exported for the command line
from crystal_jax.evaluate.oxidation import load_oxidation_table
from crystal_jax.json_files import read_object
from crystal_jax.provenance import command_line, versions
from crystal_jax.structures import Entry, Sample, read_entries, read_reference

_PACKAGE_OF = {"chgnet": ("chgnet",), "matgl": ("matgl",)}
PACKAGES = ("pymatgen", "pymatgen-core", "spglib", "scipy", "numpy", "pandas")


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
        energy=energy_options(flag_values),
        targets=flag_values.targets,
        scores=Path(flag_values.scores) if flag_values.scores else None,
        infill=[Path(folder) for folder in flag_values.infill],
        workers=flag_values.workers,
        progress=flag_values.progress,
        command=command_line("evaluate", flag_values),
    )
    print(metrics.summary(result))
    if remarks := result["remarks"]:
        print(f"{remarks} samples lack hydrogens of the formula that they state; see the column remark")
    if missing := missing_for_a_rank(result):
        print(f"candidates are {missing}")
    print(f"\nwritten: {flag_values.output}/metrics.json, structures.csv, candidates.csv, candidates/")


def evaluate(
    samples: str | Path,
    *,
    output: str | Path,
    reference: str | None = None,
    train_reference: str | None = None,
    mode: str = "default",
    oxidation_states: str = "smact14",
    fingerprints_of: str = "reference",
    coverage_cutoffs: str = "mp20",
    energy: EnergyOptions | None = None,
    targets: str | None = None,
    scores: str | Path | None = None,
    infill: Sequence[str | Path] = (),
    workers: int | None = None,
    progress: bool = True,
    command: str | None = None,
) -> dict[str, Any]:
    """Evaluates crystals and writes `metrics.json`, `structures.csv`, `candidates.csv` and `candidates/`.

    Args:
        samples: path that `structures.read_entries` reads; in a CSV, an empty `cif` is a sample that did not parse.
        output: folder to write to.
        reference: crystals to compare distributions with: CSV, folder, or prepared data set as "DIR[:split]".
        train_reference: crystals of the training set, in the same form; without it, novelty is not measured.
        mode: "default" or "paper", see the module's docstring.
        oxidation_states: "smact14" or "icsd24".
        fingerprints_of: "none", "reference" (samples and reference: coverage, diversity) or "all" (also the training
            set: novelty by fingerprint).
        coverage_cutoffs: the data set whose published cut-offs are used: "mp20", "perov5" or "carbon24".
        energy: settings for relaxing the valid samples; by default they are not relaxed.
        targets: known structures that the samples predict, in the form of `reference`.
        scores: `scores.jsonl` of 'crystal-jax score' for the same samples.
        infill: folders that 'crystal-jax infill' wrote.
        workers: processes; by default one per core.
        progress: whether to show progress bars.
        command: the command line of this evaluation, for the report.

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
        names = ", ".join(coverage.CUTOFFS)
        raise UserError(f"no cut-offs of {coverage_cutoffs!r}; --coverage_cutoffs is one of {names}")
    if workers is not None:
        arguments.whole("workers", workers, least=1, most=10_000)
    samples, output = arguments.path("samples", samples), arguments.path("output", output)
    start = time.monotonic()
    table = load_oxidation_table(oxidation_states, zr_as_in_paper=mode == "paper")
    # All inputs are opened before the first long loop, so that a wrong path fails at once.
    entries = read_entries(samples)
    real = read_reference(reference, default_split="test") if reference else []
    train = read_reference(train_reference, default_split="train") if train_reference else None

    wanted = read_reference(targets, default_split="test") if targets else None
    stage = _Stability.of(energy, output / "relaxations") if energy else None
    known = load_known_materials()

    parsed = structures.parse_all(entries, workers=workers, progress=progress)
    rows = structures.tabulate(parsed, table, workers=workers, progress=progress)
    structures.add_uniqueness(rows, parsed, train, workers=workers, progress=progress)
    real_samples = structures.parse_all(real, what="reference", workers=workers, progress=progress)
    prints = None
    if reference and fingerprints_of != "none":
        seen = None
        if train is not None and fingerprints_of == "all":
            seen = structures.parse_all(train, what="training set", workers=workers, progress=progress)
        prints = resemblance.compute_fingerprints(
            parsed,
            rows,
            real_samples,
            seen,
            table=table,
            mode=mode,
            workers=workers,
            progress=progress,
        )
    if known:
        for i in rows.index[rows["valid"]]:
            composition = parsed[i].composition
            rows.loc[i, "known_formula"] = composition is not None and known.has(reduced(composition.get_el_amt_dict()))
    if stage:
        stage.run(parsed, rows, known, mode=mode, workers=workers, progress=progress)
    dft_runs.fill_in(rows, output)
    judged = metrics.scored_rows(rows, mode)
    real_properties = structures.properties(real_samples)
    cutoffs = coverage.CUTOFFS[coverage_cutoffs]
    result = {
        **metrics.rates(rows, judged, with_novelty=train is not None),
        **metrics.distances(judged, real_properties),
        **(resemblance.metrics_of(rows, judged, prints, cutoffs=cutoffs, mode=mode) if prints else {}),
        **(stable := stage.metrics(rows, judged, mode=mode) if stage else {}),
        **dft_runs.metrics_of(rows, stable.get("metastable", {}).get("total", len(judged))),
        **conditions.metrics_of(entries, parsed, rows),
        **(_predicted(entries, parsed, structures.parse_all(wanted), progress) if wanted else {}),
        **(model_files.scores(Path(scores).expanduser(), rows) if scores else {}),
        **(model_files.infilling([Path(folder).expanduser() for folder in infill], rows) if infill else {}),
        "spacegroups": symmetry.comparison(
            judged.loc[judged["valid"], "spacegroup"].dropna().astype(int).tolist(),
            symmetry.spacegroups(real_samples, workers=workers),
        ),
        "samples": {
            "path": str(samples.resolve()),
            "read": len(rows),
            "without_structure": int(rows["density"].isna().sum()),
            "judged": len(judged),
            "models": sorted({entry.model for entry in entries if entry.model}),
        },
        "reference": reference and {"path": reference, "read": len(real), "used": len(real_properties)},
        "train_reference": train_reference and {"path": train_reference, "read": len(train or [])},
        "failures": metrics.failures(rows),
        "remarks": int(rows["remark"].notna().sum()),
        "mode": mode,
        "command": command,
        "sampling": _sampling(samples),
        "known_materials": known and known.source,
        "settings": {
            "oxidation_states": table.name,
            "paper_draw_seed": metrics.PAPER_DRAW_SEED if mode == "paper" else None,
            "electronegativity_zr": table.electronegativity["Zr"],
            "min_distance_angstrom": validity.MIN_DISTANCE,
            "min_volume_cubic_angstrom": validity.MIN_VOLUME,
            "min_radius_factor": validity.MIN_RADIUS_FACTOR,
            "max_volume_factor": validity.MAX_VOLUME_FACTOR,
            "matcher": novelty.MATCHER,
            "matcher_loose": novelty.LOOSE_MATCHER,
            "spacegroup_symprec_angstrom": symmetry.PRECISION,
            "coverage_cutoffs": dataclasses.asdict(cutoffs) if prints else None,
            "novelty_cutoffs": dataclasses.asdict(coverage.NOVELTY) if prints and prints.train else None,
            "energies": stage.settings() if stage else None,
            "fingerprint_tables": [*magpie.TABLES, CACHE] if prints else None,
        },
        "versions": versions((*PACKAGES, *(stage.packages if stage else ()))),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - start, 1),
    }
    cifs = {sample.name: (stage and stage.relaxed_cif(sample)) or sample.cif for sample in parsed}
    return write_evaluation(output, rows, result, cifs)


def _predicted(
    entries: Sequence[Entry], samples: Sequence[Sample], targets: Sequence[Sample], progress: bool
) -> dict[str, Any]:
    return prediction.metrics_of(samples, targets, entries, progress=progress)


def _sampling(samples: Path) -> dict[str, Any] | None:
    """Returns request and provenance of the samples, from the `run.json` beside them; None without a readable one."""
    folder = samples if samples.is_dir() else samples.parent
    path = next((path for path in (folder / "run.json", folder.parent / "run.json") if path.is_file()), None)
    if path is None:
        return None
    try:
        made = dict(read_object(path).content)
    except UserError:
        return None
    found = {name: made[name] for name in ("request", "provenance") if isinstance(made.get(name), dict)}
    return found if "request" in found else None


@dataclasses.dataclass
class _Stability:
    """Relaxations, hull and energies of an evaluation. Model and hull are loaded first, so that errors are raised
    early.
    """

    job: Any
    folder: Path
    hull: Any
    ray_address: str | None
    found: Any = None

    @classmethod
    def of(cls, options: EnergyOptions, folder: Path) -> _Stability:
        from crystal_jax.energy.hull import read_hull
        from crystal_jax.energy.model import load_model
        from crystal_jax.energy.runner import RelaxJob

        hull = read_hull(options.hull, elements=options.hull_elements) if options.hull else None
        if options.ray_address is None:
            load_model(options.model, weights=options.weights)
        job = RelaxJob(model=options.model, weights=str(options.weights or ""), settings=options.settings)
        return cls(job, folder, hull, options.ray_address)

    def run(
        self,
        samples: Sequence[Sample],
        rows: pd.DataFrame,
        known: KnownMaterials | None,
        *,
        mode: str,
        workers: int | None,
        progress: bool,
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
        stability.fill_in(rows, samples, self.found, self.hull, known, progress=progress)

    def metrics(self, rows: pd.DataFrame, judged: pd.DataFrame, *, mode: str) -> dict[str, Any]:
        from crystal_jax.evaluate import stability

        return stability.metrics_of(rows, judged, self.hull, mode=mode)

    @property
    def packages(self) -> tuple[str, ...]:
        """Installed packages that compute energies; with a cluster they need not be installed on this machine."""
        names = ("torch", *_PACKAGE_OF.get(self.job.model.partition(":")[0], ()))
        return tuple(name for name in names if importlib.util.find_spec(name))

    def relaxed_cif(self, sample: Sample) -> str | None:
        """Returns the relaxed crystal; None if the sample was not relaxed, or its relaxation failed."""
        row = self.found.of(sample)
        return row and row["relaxed_cif"]

    def settings(self) -> dict[str, Any]:
        from crystal_jax.evaluate import stability

        return stability.settings_of(self.found, self.hull)
