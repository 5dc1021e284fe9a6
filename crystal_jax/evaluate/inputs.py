"""Opens everything an evaluation reads, before the first long loop, so that a wrong path fails at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from crystal_jax.energy.convex_hull.choose import choose_hull
from crystal_jax.energy.convex_hull.embedded import embedded_hull
from crystal_jax.energy.convex_hull.hull import Hull
from crystal_jax.energy.convex_hull.known_materials import KnownMaterials, load_known_materials
from crystal_jax.energy.model import load_model
from crystal_jax.evaluate.chemistry import symmetry
from crystal_jax.evaluate.chemistry.oxidation import OxidationTable, load_oxidation_table
from crystal_jax.evaluate.chemistry.validity import compositional_invalid_reason, structural_invalid_reason
from crystal_jax.evaluate.config import EvaluateConfig
from crystal_jax.evaluate.crystals import parse_all, properties
from crystal_jax.evaluate.fingerprints.fingerprints import Fingerprints, fingerprints
from crystal_jax.evaluate.metrics.external_results import Infilled, Scores, read_infilled, read_scores
from crystal_jax.structures import Entry, Sample, entries_of, read_reference


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What an evaluation reads. Crystals are parsed, and fingerprints computed, when they are first used.

    Attributes:
        config: the settings.
        entries: the samples as their source states them.
        real: the reference; empty without one.
        train: the training set, if there is one.
        wanted: the targets, if there are any.
        scores: scores of the samples, if there are any.
        infilled: results of infilling.
        oxidation: the table of oxidation states.
        known: the list of known materials, if it is in the cache or could be fetched.
        hull: the known materials with energies, if there are any.
        model_hull: the hull of the potential's own energies, if `hull` is one of DFT.
    """

    config: EvaluateConfig
    entries: Sequence[Entry]
    real: Sequence[Entry]
    train: Sequence[Entry] | None
    wanted: Sequence[Entry] | None
    scores: Scores | None
    infilled: Sequence[Infilled]
    oxidation: OxidationTable
    known: KnownMaterials | None
    hull: Hull | None
    model_hull: Hull | None

    @classmethod
    def read(cls, config: EvaluateConfig) -> Inputs:
        """Reads all inputs of an evaluation, and loads the energy model once to see that it can be loaded.

        Raises:
            UserError: an input is missing or unreadable, or the energy model cannot be loaded.
        """
        entries = entries_of(config.samples, name="samples")
        hull = _energies(config) if config.has_energies else None
        return cls(
            config,
            entries,
            real=_reference(config.reference, "reference", "test") or (),
            train=_reference(config.train_reference, "train_reference", "train"),
            wanted=_reference(config.targets, "targets", "test"),
            scores=read_scores(Path(config.scores), num_samples=len(entries)) if config.scores else None,
            infilled=[read_infilled(Path(folder)) for folder in config.infill],
            oxidation=load_oxidation_table(config.oxidation_states, zr_as_in_paper=config.mode == "paper"),
            known=load_known_materials(fetch=config.has_energies),
            hull=hull,
            model_hull=embedded_hull(config.energy_model) if hull and hull.energy_model is None else None,
        )

    @property
    def is_paper_mode(self) -> bool:
        """Whether rates are counted as published."""
        return self.config.mode == "paper"

    @property
    def has_fingerprints(self) -> bool:
        """Whether samples and reference are compared by fingerprints."""
        return self.config.reference is not None and self.config.fingerprints != "none"

    @property
    def has_train_fingerprints(self) -> bool:
        """Whether samples and training set are compared by fingerprints."""
        return self.has_fingerprints and self.config.fingerprints == "all" and self.train is not None

    @cached_property
    def samples(self) -> list[Sample]:
        """The samples, parsed; those that fail stay in the list."""
        return self._parse(self.entries, "reading")

    @cached_property
    def reference(self) -> list[Sample]:
        """The crystals of the reference, parsed."""
        return self._parse(self.real, "reference")

    @cached_property
    def train_samples(self) -> list[Sample]:
        """The crystals of the training set, parsed."""
        return self._parse(self.train or (), "training set")

    @cached_property
    def targets(self) -> list[Sample]:
        """The targets, parsed."""
        return parse_all(self.wanted or (), workers=self.config.workers)

    @cached_property
    def reference_properties(self) -> pd.DataFrame:
        """Density, number of elements and number of atoms of the reference's crystals."""
        return properties(self.reference)

    @cached_property
    def reference_spacegroups(self) -> list[int | None]:
        """Space groups of the reference's crystals."""
        return symmetry.spacegroups(self.reference, workers=self.config.workers)

    @cached_property
    def compared_reference(self) -> list[Sample]:
        """The crystals of the reference that fingerprints compare with: in the mode "paper", the valid ones."""
        if not self.is_paper_mode:
            return self.reference
        return [sample for sample in self.reference if self._is_valid(sample)]

    @cached_property
    def reference_fingerprints(self) -> Fingerprints:
        """Fingerprints of `compared_reference`."""
        return self.fingerprints_of(self.compared_reference, "fingerprints, reference")

    @cached_property
    def train_fingerprints(self) -> Fingerprints:
        """Fingerprints of the training set."""
        return self.fingerprints_of(self.train_samples, "fingerprints, training set")

    def fingerprints_of(self, samples: Sequence[Sample], what: str) -> Fingerprints:
        """Computes fingerprints with the evaluation's workers; `what` names the progress bar."""
        return fingerprints(samples, what=what, workers=self.config.workers, progress=self.config.progress)

    def _parse(self, entries: Sequence[Entry], what: str) -> list[Sample]:
        return parse_all(entries, what=what, workers=self.config.workers, progress=self.config.progress)

    def _is_valid(self, sample: Sample) -> bool:
        if sample.structure is None or sample.composition is None:
            return False
        return not (
            structural_invalid_reason(sample.structure)
            or compositional_invalid_reason(sample.composition, self.oxidation)
        )


def _reference(source: Any, name: str, default_split: str) -> list[Entry] | None:
    if source is None:
        return None
    if isinstance(source, Sequence) and not isinstance(source, str):
        return entries_of(source, name=name)
    return read_reference(str(source), default_split=default_split)


def _energies(config: EvaluateConfig) -> Hull | None:
    """Reads the hull; loads the energy model, unless a cluster does."""
    hull = choose_hull(config.energy_model, config.hull, config.hull_elements)
    if config.ray_address is None:
        load_model(config.energy_model, weights=Path(config.energy_weights) if config.energy_weights else None)
    return hull
