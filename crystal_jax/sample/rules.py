"""The rules that samples can be made to keep to, by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from crystal_jax.evaluate.oxidation import load_oxidation_table
from crystal_jax.evaluate.validity import MIN_DISTANCE
from crystal_jax.sample.charge import ChargeBalance
from crystal_jax.sample.constraints import formula_unit
from crystal_jax.sample.geometry import CellForms, KeepsDistance, LatticeSystem
from crystal_jax.sample.guide import Guide, Guides
from crystal_jax.text.automaton import ANY, TokenAutomaton
from crystal_jax.text.crystal_text import ELEMENTS

CONSTRAINTS = {
    "formula": "the composition is a multiple of the requested formula",
    "charge": "charges can balance (compositional validity)",
    "distance": "the angles form a cell, and atoms keep their distance (structural validity)",
    "lattice": "lengths and angles are those of the requested space group's lattice system",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
    """What every sample of a job keeps to.

    Attributes:
        constraints: Some of `CONSTRAINTS`.
        elements: Elements that may occur.
        min_atoms, max_atoms: Of the cell.
        oxidation_states: The table for `charge`: smact14 or icsd24.
        min_distance: For `distance`, in Å.
        min_radii: For `distance`: or this share of the sum of two covalent radii, if that is more.
    """

    constraints: frozenset[str] = frozenset()
    elements: tuple[str, ...] = ELEMENTS
    min_atoms: int = 1
    max_atoms: int = 20
    oxidation_states: str = "smact14"
    min_distance: float = MIN_DISTANCE
    min_radii: float = 0.0

    def __post_init__(self):
        if unknown := self.constraints - CONSTRAINTS.keys():
            raise ValueError(f"unknown constraints {', '.join(sorted(unknown))}; there are: {', '.join(CONSTRAINTS)}")
        if self.min_distance < 0 or self.min_radii < 0:
            raise ValueError(f"min_distance={self.min_distance} and min_radii={self.min_radii} must not be negative")


def narrowed(rules: Rules, asked: Mapping[str, Any]) -> Rules:
    """The rules of a job, and what one request adds to them, by the names of `LIMITS` in sample/requests.py.

    Raises:
        ValueError: no element is left, or something that is asked for does not exist.
    """
    elements = allowed_elements(asked.get("elements", rules.elements), asked.get("without", ()))
    return dataclasses.replace(
        rules,
        constraints=rules.constraints | set(asked.get("constraints", ())),
        elements=allowed_elements([symbol for symbol in elements if symbol in rules.elements], ()),
        min_atoms=max(rules.min_atoms, asked.get("min_atoms", rules.min_atoms)),
        max_atoms=min(rules.max_atoms, asked.get("max_atoms", rules.max_atoms)),
    )


def make_guide(
    rules: Rules,
    automaton: TokenAutomaton,
    *,
    formula: str | None = None,
    spacegroup: int | None = None,
    stated: bool = False,
) -> Guide | None:
    """The guide of the requests with this formula and space group; None where the rules need none.

    Charges are no business of it where a composition is `stated` before: see `make_admission`.

    Raises:
        ValueError: a rule needs a formula or space group that is not asked for, or the formula breaks one.
    """
    guides: list[Guide] = []
    values = {name: automaton.values[part] for name, part in automaton.fields.items()}
    if "charge" in rules.constraints:
        guide = _charge_balance(rules, automaton)
        if "formula" not in rules.constraints:
            guides += [] if stated else [guide]
        elif formula and not guide.is_valid(formula_unit(formula)):
            raise ValueError(f"the charges of {formula} cannot balance; leave out the constraint 'charge'")
    if "distance" in rules.constraints:
        if ANY in values["z"]:
            raise ValueError("the constraint 'distance' needs a model that writes fractional coordinates")
        guides.append(CellForms(lengths=values["length"], angles=values["angle"], shortest=rules.min_distance))
        guides.append(KeepsDistance(values["z"], shortest=rules.min_distance, radii=rules.min_radii))
    if "lattice" in rules.constraints:
        if spacegroup is None:
            raise ValueError("the constraint 'lattice' needs a requested space group")
        guides.append(LatticeSystem(spacegroup, lengths=values["length"], angles=values["angle"]))
    return Guides(guides) if guides else None


def _charge_balance(rules: Rules, automaton: TokenAutomaton) -> ChargeBalance:
    return ChargeBalance(
        load_oxidation_table(rules.oxidation_states),
        automaton.values[automaton.fields["element"]],
        elements=rules.elements,
        min_atoms=rules.min_atoms,
        max_atoms=rules.max_atoms,
    )


def make_admission(rules: Rules, automaton: TokenAutomaton) -> Callable[[Mapping[str, int]], bool]:
    """Whether the charges of a composition balance, where they must."""
    if "charge" not in rules.constraints:
        return lambda composition: True
    return _charge_balance(rules, automaton).is_valid


def formula_of(rules: Rules, formula: str | None) -> str | None:
    """The formula that the composition is held to, if it is.

    Raises:
        ValueError: it is to be, and none is asked for.
    """
    if "formula" not in rules.constraints:
        return None
    if not formula:
        raise ValueError("the constraint 'formula' needs a requested formula")
    return formula


def allowed_elements(elements: Sequence[str], without: Sequence[str]) -> tuple[str, ...]:
    """Those of `elements` that are not in `without`.

    Raises:
        ValueError: one of either is no element, or none is left.
    """
    if unknown := ({*elements, *without}) - set(ELEMENTS):
        raise ValueError(f"Not elements: {', '.join(sorted(unknown))}")
    if not (left := tuple(symbol for symbol in elements if symbol not in set(without))):
        raise ValueError("A crystal needs at least one allowed element")
    return left
