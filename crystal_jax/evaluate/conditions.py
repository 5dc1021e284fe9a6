"""Measures how often samples meet their conditions: formula, space group, energy above the hull, chemical system.

The conditions are read from the column `requested` of a samples file of 'crystal-jax sample', or otherwise from the
prompt (`gen_str`), as the paper's code writes it. A sample without a structure does not meet its conditions.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
from pymatgen.core import Composition, Structure
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from crystal_jax.energy.hull import METASTABLE
from crystal_jax.errors import UserError
from crystal_jax.evaluate.rate import Rate
from crystal_jax.structures import Entry, Sample
from crystal_jax.suppress_warnings import quiet

SYMMETRY_PRECISION = 0.2  # Å, as in the paper
SIZES = (5, 10, 15, 20)  # upper limits of the groups by number of atoms; the last group has no limit

_ASKED = {
    "formula": re.compile(r"The chemical formula is (\S+)\. "),
    "spacegroup": re.compile(r"The spacegroup number is (\d+)\. "),
    "e_above_hull": re.compile(r"The energy above the convex hull is (-?[\d.]+?)\. "),
}


@dataclasses.dataclass(frozen=True)
class Asked:
    """Conditions of a sample; None for those that were not given."""

    formula: str | None
    spacegroup: int | None
    e_above_hull: float | None
    chemical_system: frozenset[str] | None = None

    @classmethod
    def of(cls, entry: Entry) -> Asked:
        """Reads the conditions of a sample from its request, or else from its prompt, which may be followed by the
        completion.
        """
        if entry.requested is None:
            return cls._of_prompt(entry.prompt)
        try:
            return cls._of_request(json.loads(entry.requested or "{}"))
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

    @classmethod
    def _of_prompt(cls, prompt: str) -> Asked:
        found = {name: pattern.search(prompt) for name, pattern in _ASKED.items()}
        formula, group, height = (match[1] if match else None for match in found.values())
        return cls(formula, None if group is None else int(group), None if height is None else float(height))


def metrics_of(entries: Sequence[Entry], samples: Sequence[Sample], rows: pd.DataFrame) -> dict[str, Any]:
    """Returns the rates `formula_match`, `spacegroup_match`, `e_above_hull_match` and `chemical_system_match`, each
    also by number of atoms, and fills in the columns of these names. Returns nothing if no sample has a condition.

    `e_above_hull_match` needs the column `e_above_hull`.
    """
    asked = [Asked.of(entry) for entry in entries]
    checks: dict[str, Callable[[int], bool | None]] = {
        "formula_match": lambda i: _formula(asked[i], samples[i]),
        "spacegroup_match": lambda i: _spacegroup(asked[i], samples[i]),
        "e_above_hull_match": lambda i: _height(asked[i], rows.loc[i, "e_above_hull"]),
        "chemical_system_match": lambda i: _chemical_system(asked[i], samples[i]),
    }
    if rows["e_above_hull"].isna().all():
        del checks["e_above_hull_match"]
    found = {}
    for name, check in checks.items():
        verdicts = pd.Series([check(i) for i in range(len(samples))], dtype="boolean")
        if verdicts.notna().any():
            rows[name] = verdicts
            of = verdicts[verdicts.notna()]
            found[name] = Rate.of(of).as_dict() | {"by_atoms": _by_size(of, rows)}
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
