"""Constrains compositions: elements, chemical system, numbers of atoms and of elements, or one formula.

The constraint is decided exactly while a composition is written, element by element in the order of electronegativity:
every continuation that it allows can be completed, and no continuation that it forbids could be.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping

from crystal_jax.errors import RequestError
from crystal_jax.text.conditions import formula_unit
from crystal_jax.text.crystal_text import ELEMENTS
from crystal_jax.text.layout import in_order

MAX_ELEMENTS = 10  # largest number of elements in a composition; crystals of MP-20 have up to seven

Parts = tuple[tuple[str, int], ...]  # elements and their numbers of atoms, in the order of electronegativity

_ORDER = in_order(ELEMENTS)
_RANK = {symbol: rank for rank, symbol in enumerate(_ORDER)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompositionConstraint:
    """Constraint on a composition.

    Attributes:
        elements: elements that may occur.
        required: elements that must occur; together with equal `elements`, a chemical system.
        min_elements, max_elements: limits on the number of different elements.
        min_atoms, max_atoms: limits on the number of atoms in the cell.
        formula: formula of which the composition must be a multiple; None allows any composition.

    Raises:
        RequestError: no composition satisfies the constraint, or a name is not an element or formula.
    """

    elements: Collection[str] = ELEMENTS
    required: Collection[str] = ()
    min_elements: int = 1
    max_elements: int = MAX_ELEMENTS
    min_atoms: int = 1
    max_atoms: int = 20
    formula: str | None = None
    unit: Parts = dataclasses.field(init=False, default=())

    def __post_init__(self) -> None:
        if unknown := {*self.elements, *self.required} - set(ELEMENTS):
            raise RequestError(f"Not elements: {', '.join(sorted(unknown))}")
        if not self.elements:
            raise RequestError("A crystal needs at least one allowed element")
        if foreign := [symbol for symbol in self.required if symbol not in set(self.elements)]:
            raise RequestError(f"the chemical system has {', '.join(foreign)}, which the allowed elements leave out")
        for what, least, most in (
            ("atoms", self.min_atoms, self.max_atoms),
            ("elements", self.min_elements, self.max_elements),
        ):
            if not 1 <= least <= most:
                raise RequestError(f"min_{what}={least} must be at least 1 and at most max_{what}={most}")
        if len(self.required) > self.max_elements:
            raise RequestError(f"{len(self.required)} elements are required, and max_elements={self.max_elements}")
        if self.min_elements > len(set(self.elements)):
            raise RequestError(
                f"min_elements={self.min_elements}, and only {len(set(self.elements))} elements may occur"
            )
        needed = max(len(self.required), self.min_elements)
        if needed > self.max_atoms:
            raise RequestError(f"{needed} elements need more atoms than max_atoms={self.max_atoms}")
        object.__setattr__(self, "elements", frozenset(self.elements))
        object.__setattr__(self, "required", frozenset(self.required))
        if self.formula:
            self._set_unit(formula_unit(self.formula))

    def _set_unit(self, counts: Mapping[str, int]) -> None:
        if foreign := set(counts) - set(self.elements):
            raise RequestError(f"{self.formula} has {', '.join(sorted(foreign))}, which the allowed elements leave out")
        if absent := set(self.required) - set(counts):
            raise RequestError(f"{self.formula} has no {', '.join(sorted(absent))}, which the chemical system requires")
        if not self.min_elements <= len(counts) <= self.max_elements:
            raise RequestError(
                f"{self.formula} has {len(counts)} elements, not {self.min_elements} to {self.max_elements}"
            )
        size = sum(counts.values())
        if not any(self.min_atoms <= n <= self.max_atoms for n in range(size, self.max_atoms + 1, size)):
            raise RequestError(
                f"no multiple of {self.formula} ({size} atoms) has {self.min_atoms} to {self.max_atoms} atoms"
            )
        object.__setattr__(self, "unit", tuple((symbol, counts[symbol]) for symbol in in_order(counts)))

    def next_elements(self, parts: Parts) -> tuple[str, ...]:
        """Returns the elements that may come after these parts, in the order of electronegativity."""
        if self.unit:
            return tuple(symbol for symbol, _ in self.unit[len(parts) :][:1])
        later = [symbol for symbol in _ORDER[_rank_after(parts) :] if symbol in self.elements]
        if not self.required and self.min_elements <= len(parts) + 1:  # no further element is needed after the next one
            has_room = len(parts) < self.max_elements and _num_atoms(parts) < self.max_atoms
            return tuple(later) if has_room else ()
        return tuple(symbol for i, symbol in enumerate(later) if self._can_follow(parts, symbol, len(later) - i - 1))

    def _can_follow(self, parts: Parts, symbol: str, num_later: int) -> bool:
        """Whether an element can come next, given how many allowed elements come after it in the order."""
        present = {element for element, _ in parts}
        missing = set(self.required) - present - {symbol}
        if any(_RANK[element] < _RANK[symbol] for element in missing):  # it could not come later
            return False
        number = len(parts) + 1
        needed = self._num_needed((*parts, (symbol, 1)))
        return (
            number + len(missing) <= self.max_elements
            and needed <= num_later
            and _num_atoms(parts) + 1 + needed <= self.max_atoms
        )

    def _num_needed(self, parts: Parts) -> int:
        """Returns how many further elements a composition needs after these parts."""
        missing = len(set(self.required) - {element for element, _ in parts})
        return max(missing, self.min_elements - len(parts), 0)

    def next_counts(self, parts: Parts, symbol: str) -> tuple[int, ...]:
        """Returns the numbers of atoms that the next element `symbol` may have after these parts."""
        if self.unit:
            unit, size = dict(self.unit), sum(n for _, n in self.unit)
            multiples = range(max(1, -(-self.min_atoms // size)), self.max_atoms // size + 1)
            return tuple(k * unit[symbol] for k in multiples if all(n == k * unit[s] for s, n in parts))
        atoms = _num_atoms(parts)
        most = self.max_atoms - atoms - self._num_needed((*parts, (symbol, 1)))
        ends_here = not self.next_elements((*parts, (symbol, 1)))
        least = max(1, self.min_atoms - atoms) if ends_here else 1
        return tuple(range(least, most + 1))

    def is_met(self, parts: Parts) -> bool:
        """Whether the composition may end after these parts."""
        if self.unit:
            return len(parts) == len(self.unit)
        enough = self.min_atoms <= _num_atoms(parts) <= self.max_atoms
        return enough and not self._num_needed(parts) and len(parts) <= self.max_elements


def _rank_after(parts: Parts) -> int:
    return _RANK[parts[-1][0]] + 1 if parts else 0


def _num_atoms(parts: Iterable[tuple[str, int]]) -> int:
    return sum(number for _, number in parts)
