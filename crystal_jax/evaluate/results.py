"""Builds the content of `metrics.json` from the finished table: metrics, inputs, settings, versions."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.util
from pathlib import Path
from typing import Any

import pandas as pd

from crystal_jax.energy.model import includes_corrections
from crystal_jax.errors import UserError
from crystal_jax.evaluate.chemistry import symmetry, validity
from crystal_jax.evaluate.cutoffs import CUTOFFS, NOVELTY
from crystal_jax.evaluate.fingerprints import comparison, magpie
from crystal_jax.evaluate.fingerprints.fingerprints import CACHE
from crystal_jax.evaluate.inputs import Inputs
from crystal_jax.evaluate.metrics import conditions, dft_runs, external_results, prediction, rates, stability
from crystal_jax.evaluate.novelty import matcher
from crystal_jax.json_files import read_object
from crystal_jax.provenance import versions

_PACKAGES = ("pymatgen", "pymatgen-core", "spglib", "scipy", "numpy", "pandas")
_PACKAGE_OF = {"chgnet": ("chgnet",), "matgl": ("matgl",)}


def content_of(table: pd.DataFrame, inputs: Inputs, *, command: str | None) -> dict[str, Any]:
    """Returns the content of `metrics.json`, except the time that the evaluation took.

    Args:
        table: the finished table, see `stages.run_stages`.
        inputs: what the evaluation read.
        command: the command line, for the report.
    """
    scored = rates.scored_rows(table, inputs.config.mode)
    return {
        **_metrics(table, scored, inputs),
        "spacegroups": symmetry.comparison(
            scored.loc[scored["valid"], "spacegroup"].dropna().astype(int).tolist(), inputs.reference_spacegroups
        ),
        "samples": {
            "path": None if (path := _path(inputs.config.samples)) is None else str(path.resolve()),
            "read": len(table),
            "without_structure": int(table["density"].isna().sum()),
            "judged": len(scored),
            "models": sorted({entry.model for entry in inputs.entries if entry.model}),
        },
        **_sources(inputs),
        "failures": rates.failures(table),
        "remarks": int(table["remark"].notna().sum()),
        "mode": inputs.config.mode,
        "command": command,
        "sampling": _sampling(path) if path else None,
        "known_materials": inputs.known and inputs.known.source,
        "settings": _settings(inputs),
        "versions": versions((*_PACKAGES, *_energy_packages(inputs))),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _metrics(table: pd.DataFrame, scored: pd.DataFrame, inputs: Inputs) -> dict[str, Any]:
    """Returns the metrics, family by family; each is a function of the table and of what it is compared with."""
    config, paper_mode = inputs.config, inputs.is_paper_mode
    found: dict[str, Any] = rates.rates(table, scored, with_novelty=inputs.train is not None)
    found |= rates.distances(scored, inputs.reference_properties)
    if inputs.has_fingerprints:
        found |= comparison.metrics_of(
            table,
            scored,
            inputs.reference_fingerprints,
            cutoffs=CUTOFFS[config.coverage_cutoffs],
            paper_mode=paper_mode,
        )
    if inputs.has_train_fingerprints:
        found |= comparison.novelty_of(scored, paper_mode=paper_mode)
    if config.has_energies:
        found |= stability.metrics_of(table, scored, has_hull=inputs.hull is not None, paper_mode=paper_mode)
    metastable = found.get("metastable") or {}
    found |= dft_runs.metrics_of(table, metastable.get("total", len(scored)))
    found |= conditions.metrics_of(table)
    if inputs.wanted:
        found |= prediction.metrics_of(inputs.samples, inputs.targets, inputs.entries, progress=config.progress)
    if inputs.scores:
        found |= external_results.score_metrics(table, inputs.scores)
    if inputs.infilled:
        found |= external_results.infill_metrics(inputs.infilled, table)
    return found


def _sources(inputs: Inputs) -> dict[str, Any]:
    """Returns what reference and training set are, and how many crystals they have."""
    config = inputs.config
    used = len(inputs.reference_properties)
    reference = {"path": _text(config.reference), "read": len(inputs.real), "used": used}
    train = {"path": _text(config.train_reference), "read": len(inputs.train or ())}
    return {
        "reference": reference if config.reference is not None else None,
        "train_reference": train if config.train_reference is not None else None,
    }


def _settings(inputs: Inputs) -> dict[str, Any]:
    """Returns the settings and constants behind the metrics."""
    paper_mode, prints = inputs.is_paper_mode, inputs.has_fingerprints
    return {
        "oxidation_states": inputs.oxidation.name,
        "paper_draw_seed": rates.PAPER_DRAW_SEED if paper_mode else None,
        "electronegativity_zr": inputs.oxidation.electronegativity["Zr"],
        "min_distance_angstrom": validity.MIN_DISTANCE,
        "min_volume_cubic_angstrom": validity.MIN_VOLUME,
        "min_radius_factor": validity.MIN_RADIUS_FACTOR,
        "max_volume_factor": validity.MAX_VOLUME_FACTOR,
        "matcher": matcher.MATCHER,
        "matcher_loose": matcher.LOOSE_MATCHER,
        "spacegroup_symprec_angstrom": symmetry.PRECISION,
        "coverage_cutoffs": dataclasses.asdict(CUTOFFS[inputs.config.coverage_cutoffs]) if prints else None,
        "novelty_cutoffs": dataclasses.asdict(NOVELTY) if inputs.has_train_fingerprints else None,
        "energies": _energy_settings(inputs),
        "fingerprint_tables": [*magpie.TABLES, CACHE] if prints else None,
    }


def _energy_settings(inputs: Inputs) -> dict[str, Any] | None:
    if not inputs.config.has_energies:
        return None
    corrected = includes_corrections(inputs.config.energy_model)
    settings = stability.settings_of(inputs.config.relax_job, inputs.hull, corrected=corrected)
    if inputs.hull is not None:
        files = {"path": _text(inputs.config.hull), "elements_path": _text(inputs.config.hull_elements)}
        settings["hull"] |= files  # so that the report can draw the hull
    return settings


def _energy_packages(inputs: Inputs) -> tuple[str, ...]:
    """Returns the installed packages that compute energies; with a cluster they need not be installed here."""
    if not inputs.config.has_energies:
        return ()
    names = ("torch", *_PACKAGE_OF.get(inputs.config.energy_model.partition(":")[0], ()))
    return tuple(name for name in names if importlib.util.find_spec(name))


def _path(source: Any) -> Path | None:
    """Returns the path of the samples; None if they were in memory."""
    return Path(source).expanduser() if isinstance(source, str | Path) else None


def _text(source: Any) -> str | None:
    return str(source) if isinstance(source, str | Path) else None


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
