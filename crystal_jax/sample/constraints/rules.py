"""The constraints of a sampling run: named constraints, and limits on the composition."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from crystal_jax.errors import RequestError
from crystal_jax.evaluate.chemistry.oxidation import load_oxidation_table
from crystal_jax.evaluate.chemistry.validity import (
    MAX_VOLUME_FACTOR,
    MIN_DISTANCE,
    MIN_RADIUS_FACTOR,
    covalent_radius,
    sphere_volume,
)
from crystal_jax.sample.constraints.charge import ChargeBalance
from crystal_jax.sample.constraints.geometry import KeepsDistance, LatticeSystem, ValidCell
from crystal_jax.sample.constraints.guide import Guide, Guides
from crystal_jax.text.conditions import formula_unit, without_elements
from crystal_jax.text.crystal_text import ELEMENTS
from crystal_jax.text.grammar.automaton import ANY, TokenAutomaton
from crystal_jax.text.grammar.composition_constraint import MAX_ELEMENTS, CompositionConstraint

CONSTRAINTS = {
    "formula": "the composition is a multiple of the requested formula (kept to unless --hints_only)",
    "charge": "charges can balance (compositional validity)",
    "distance": "the angles form a cell, atoms keep the distance that their radii ask for, and the cell is not mostly "
    "empty (plausible)",
    "symmetry": "the crystal has the requested space group (models whose texts state positions)",
    "lattice": "lengths and angles are those of the requested space group's lattice system",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
    """The constraints that every sample of a run satisfies.

    Attributes:
        constraints: Names of constraints, from `CONSTRAINTS`.
        elements: Elements that may occur.
        required: Elements that must occur: all those of a chemical system.
        min_elements, max_elements: Numbers of distinct elements.
        min_atoms, max_atoms: Numbers of atoms in the cell.
        oxidation_states: Table for the constraint `charge`: smact14 or icsd24.
        min_distance: For `distance`: minimum distance of two atoms, in Å.
        min_radius_factor: For `distance`: minimum distance as a share of the sum of two covalent radii; the larger of
            the two minima holds.
        hints_only: A requested formula is only a hint in the prompt; it does not constrain the composition.

    Raises:
        RequestError: a constraint is unknown, or a distance is negative or not finite.
    """

    constraints: frozenset[str] = frozenset()
    elements: tuple[str, ...] = ELEMENTS
    required: tuple[str, ...] = ()
    min_elements: int = 1
    max_elements: int = MAX_ELEMENTS
    min_atoms: int = 1
    max_atoms: int = 20
    oxidation_states: str = "smact14"
    min_distance: float = MIN_DISTANCE
    min_radius_factor: float = MIN_RADIUS_FACTOR
    hints_only: bool = False

    def __post_init__(self) -> None:
        if unknown := self.constraints - CONSTRAINTS.keys():
            raise RequestError(f"unknown constraints {', '.join(sorted(unknown))}; there are: {', '.join(CONSTRAINTS)}")
        for name in ("min_distance", "min_radius_factor"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise RequestError(f"{name}={getattr(self, name)} must be finite and not negative")

    def composition(self, formula: str | None) -> CompositionConstraint:
        """Returns the composition constraint, given the formula to enforce, if there is one.

        Raises:
            ValueError: no composition is possible.
        """
        return CompositionConstraint(
            elements=self.elements,
            required=self.required,
            min_elements=self.min_elements,
            max_elements=self.max_elements,
            min_atoms=self.min_atoms,
            max_atoms=self.max_atoms,
            formula=formula,
        )


def merged_with(rules: Rules, limits: Mapping[str, Any]) -> Rules:
    """Returns the rules with further limits added, by the names of `CONSTRAINT_COLUMNS` in sample/requests.py.

    Raises:
        RequestError: no element is left, a constraint is unknown, or the chemical system has elements that other limits
            exclude.
    """
    allowed = [symbol for symbol in limits.get("elements", rules.elements) if symbol in rules.elements]
    system = tuple(limits.get("chemical_system", ()))
    excluded = limits.get("exclude_elements", ())
    if foreign := [symbol for symbol in system if symbol not in allowed or symbol in excluded]:
        raise RequestError(
            f"chemical_system {'-'.join(system)} has {', '.join(foreign)}, which the other limits leave out"
        )
    return dataclasses.replace(
        rules,
        constraints=rules.constraints | set(limits.get("constraints", ())),
        elements=without_elements(system or allowed, excluded),
        required=tuple(dict.fromkeys((*rules.required, *system))),
        min_elements=max(rules.min_elements, limits.get("min_elements", 1)),
        max_elements=min(rules.max_elements, limits.get("max_elements", rules.max_elements)),
        min_atoms=max(rules.min_atoms, limits.get("min_atoms", 1)),
        max_atoms=min(rules.max_atoms, limits.get("max_atoms", rules.max_atoms)),
    )


def make_guide(
    rules: Rules,
    automaton: TokenAutomaton,
    *,
    formula: str | None = None,
    spacegroup: int | None = None,
    composition_first: bool = False,
    composition: Mapping[str, int] | None = None,
) -> Guide | None:
    """Returns the guide that enforces these rules; None where they need none.

    Args:
        rules: Constraints of the samples.
        automaton: The grammar.
        formula: The formula to enforce, if there is one; its charges are checked here and need no guide.
        spacegroup: The requested space group.
        composition_first: The composition is decided before the sites, and `make_admission` checks its charges.
        composition: That composition, once it is known: the guide then keeps the cell large enough for its atoms, and
            not far too large.

    Raises:
        RequestError: a constraint needs a formula or space group that is not requested, or the formula violates a
            constraint.
    """
    guides: list[Guide] = []
    values = {name: automaton.values[part] for name, part in automaton.fields.items()}
    if "charge" in rules.constraints and formula is not None:
        if not _charge_balance(rules, automaton).is_valid(formula_unit(formula)):
            raise RequestError(f"the charges of {formula} cannot balance; leave out the constraint 'charge'")
    elif "charge" in rules.constraints and not composition_first:
        guides.append(_charge_balance(rules, automaton))
    if "distance" in rules.constraints:
        if ANY in values["z"]:
            raise RequestError("the constraint 'distance' needs a model that writes fractional coordinates")
        guides += _distance_guides(rules, values, composition, automaton.max_atoms)
    if "lattice" in rules.constraints:
        if spacegroup is None:
            raise RequestError("the constraint 'lattice' needs a requested space group")
        guides.append(LatticeSystem(spacegroup, lengths=values["length"], angles=values["angle"]))
    return Guides(guides) if guides else None


def _distance_guides(
    rules: Rules, values: Mapping[str, Sequence[str]], composition: Mapping[str, int] | None, max_atoms: int
) -> list[Guide]:
    """Returns the guides that keep atoms apart and cells from being mostly empty."""
    factor = MAX_VOLUME_FACTOR if rules.min_radius_factor else math.inf
    if composition:
        own = 2 * rules.min_radius_factor * max(covalent_radius(symbol) for symbol in composition)
        spheres = sum(number * sphere_volume([symbol]) for symbol, number in composition.items())
    else:  # `KeepsDistance` checks each element as it comes
        own, spheres = 0.0, rules.max_atoms * max(sphere_volume([symbol]) for symbol in rules.elements)
    return [
        ValidCell(
            lengths=values["length"],
            angles=values["angle"],
            shortest=max(rules.min_distance, own),
            largest=factor * spheres,
        ),
        KeepsDistance(
            values["z"],
            elements=None if composition else values["element"],
            shortest=rules.min_distance,
            radii=rules.min_radius_factor,
            max_volume_factor=factor,
            max_atoms=max_atoms,
        ),
    ]


def _charge_balance(rules: Rules, automaton: TokenAutomaton) -> ChargeBalance:
    return ChargeBalance(
        load_oxidation_table(rules.oxidation_states),
        automaton.values[automaton.fields["element"]],
        elements=rules.elements,
        min_atoms=rules.min_atoms,
        max_atoms=rules.max_atoms,
    )


def make_admission(rules: Rules, automaton: TokenAutomaton) -> Callable[[Mapping[str, int]], bool]:
    """Returns a test of whole compositions: whether their charges balance, if the rules require it."""
    if "charge" not in rules.constraints:
        return lambda composition: True
    return _charge_balance(rules, automaton).is_valid


def kept_formula(rules: Rules, formula: str | None) -> str | None:
    """Returns the formula that the composition must be a multiple of; None if it is only a hint, or none is requested.

    Raises:
        RequestError: the constraint `formula` is set, and no formula is requested.
    """
    if "formula" in rules.constraints and not formula:
        raise RequestError("the constraint 'formula' needs a requested formula")
    return formula if "formula" in rules.constraints or not rules.hints_only else None
