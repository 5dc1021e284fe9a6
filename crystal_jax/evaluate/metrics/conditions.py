"""Measures how often samples meet their conditions: formula, space group, energy above the hull, chemical system.

The conditions are in the column `requested` of a samples file of 'crystal-jax sample'. Files of the paper's code have
them in the prompt only (`gen_str`). A sample without a structure does not meet its conditions.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from pymatgen.core import Composition, Structure
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from crystal_jax.energy.settings import METASTABLE
from crystal_jax.errors import UserError
from crystal_jax.evaluate.metrics.rate import Rate
from crystal_jax.structures import Entry, Sample
from crystal_jax.suppress_warnings import quiet
from crystal_jax.text.prompts import conditions_of

SYMMETRY_PRECISION = 0.2  # Å, as in the paper
SIZES = (5, 10, 15, 20)  # upper limits of the groups by number of atoms; the last group has no limit


@dataclasses.dataclass(frozen=True)
class Asked:
    """Conditions of a sample; None for those that were not given."""

    formula: str | None
    spacegroup: int | None
    e_above_hull: float | None
    chemical_system: frozenset[str] | None = None

    @classmethod
    def of(cls, entry: Entry) -> Asked:
        """Reads the conditions of a sample from its request, or else from its prompt, as the paper's code writes it.

        Raises:
            UserError: the request is no JSON object, or a value in it is no condition.
        """
        try:
            conditions = conditions_of(entry.prompt) if entry.requested is None else json.loads(entry.requested or "{}")
            return cls._of_request(conditions)
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{entry.where or entry.name}: requested is not a request in JSON ({error})") from error

    @classmethod
    def _of_request(cls, request: Mapping[str, Any]) -> Asked:
        group, height = request.get("spacegroup.number"), request.get("e_above_hull")
        system = request.get("chemical_system")
        return cls(
            formula=request.get("pretty_formula"),
            spacegroup=None if group is None else int(group),
            e_above_hull=None if height is None else float(height),
            chemical_system=None if system is None else frozenset(system),
        )


COLUMNS = ("formula_match", "spacegroup_match", "e_above_hull_match", "chemical_system_match")


def match_columns(table: pd.DataFrame, entries: Sequence[Entry], samples: Sequence[Sample]) -> dict[str, pd.Series]:
    """Returns `COLUMNS`: whether each sample meets its conditions, missing where it has none of the kind.

    Args:
        table: the column `e_above_hull`; without any value in it, `e_above_hull_match` is not measured.
        entries: the samples' entries, which state their conditions.
        samples: the samples.
    """
    asked = [Asked.of(entry) for entry in entries]
    heights = table["e_above_hull"]
    pairs = list(zip(asked, samples, strict=True))
    found = {
        "formula_match": [_formula(one, sample) for one, sample in pairs],
        "spacegroup_match": [_spacegroup(one, sample) for one, sample in pairs],
        "e_above_hull_match": [_height(one, height) for one, height in zip(asked, heights, strict=True)],
        "chemical_system_match": [_chemical_system(one, sample) for one, sample in pairs],
    }
    if heights.isna().all():
        found["e_above_hull_match"] = [None] * len(samples)
    return {name: pd.Series(verdicts, table.index, dtype="boolean") for name, verdicts in found.items()}


def metrics_of(table: pd.DataFrame) -> dict[str, Any]:
    """Returns a rate for each of `COLUMNS` that has a value, also by number of atoms."""
    found = {}
    for name in COLUMNS:
        verdicts = table[name].dropna()
        if len(verdicts):
            found[name] = Rate.of(verdicts).as_dict() | {"by_atoms": _by_size(verdicts, table)}
    return found


def _by_size(verdicts: pd.Series, rows: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Returns a rate for each size group; samples without atoms are in no group."""
    atoms = rows.loc[verdicts.index, "num_atoms"]
    edges = [0, *SIZES, float("inf")]
    groups = {}
    for low, high in itertools.pairwise(edges):
        inside = ((atoms > low) & (atoms <= high)).fillna(False)
        name = f"{low + 1}-{high}" if high != edges[-1] else f"{low + 1} or more"
        if inside.any():
            groups[name] = Rate.of(verdicts[inside]).as_dict()
    return groups


def _formula(asked: Asked, sample: Sample) -> bool | None:
    """Whether the reduced formulas are equal; None without a condition."""
    if asked.formula is None:
        return None
    try:
        wanted = Composition(asked.formula).reduced_formula
    except ValueError:
        return False
    return sample.composition is not None and sample.composition.reduced_formula == wanted


def _spacegroup(asked: Asked, sample: Sample) -> bool | None:
    if asked.spacegroup is None:
        return None
    return sample.structure is not None and _group_of(sample.structure) == asked.spacegroup


def _chemical_system(asked: Asked, sample: Sample) -> bool | None:
    """Whether the sample has exactly these elements; None without a condition."""
    if asked.chemical_system is None:
        return None
    return sample.composition is not None and {e.symbol for e in sample.composition} == asked.chemical_system


def _height(asked: Asked, found: Any) -> bool | None:
    if asked.e_above_hull is None:
        return None
    return not pd.isna(found) and (float(found) < METASTABLE) == (asked.e_above_hull < METASTABLE)


@quiet()
def _group_of(structure: Structure) -> int | None:
    try:
        return SpacegroupAnalyzer(structure, symprec=SYMMETRY_PRECISION).get_space_group_number()
    except Exception:  # spglib's error types change between versions
        return None
