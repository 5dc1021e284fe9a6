"""Checks whether the elements of a composition have balancing charges: SMACT's rule, decided exactly and fast.

A composition is balanced if each element can be given one of its known oxidation states (the same for all its atoms)
such that the charges sum to zero and every cation is less electronegative than every anion (Davies et al., Chem 1, 617,
2016). Trying all choices costs the product of the lists' lengths. Here the signs are fixed first; for fixed signs, the
number of reachable charge sums is small.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources

from pymatgen.core import Element

from crystal_jax.errors import UserError
from crystal_jax.evaluate.config import OXIDATION_STATES

# χ of Zr in SMACT before 2023-10-19, and so in the paper and in CDVAE: a typing error for 1.33.
ZR_ELECTRONEGATIVITY_IN_PAPER = 0.33


@dataclasses.dataclass(frozen=True)
class OxidationTable:
    """Oxidation states and electronegativities of the elements.

    Attributes:
        name: name of the list of oxidation states.
        states: element symbol to its non-zero oxidation states, in units of the elementary charge.
        electronegativity: element symbol to χ on Pauling's scale; elements without a value are absent.
        metals: symbols of the elements whose alloys need no charge balance.
    """

    name: str
    states: Mapping[str, tuple[int, ...]]
    electronegativity: Mapping[str, float]
    metals: frozenset[str]

    def is_balanced(self, counts: Mapping[str, int]) -> bool:
        """Whether some choice of oxidation states is neutral and passes Pauling's test.

        A missing electronegativity makes the Pauling test fail if it is compared within a pair of the same sign, as in
        every SMACT, and pass if it is compared between a cation and an anion, as in the evaluator of CDVAE. An element
        without oxidation states has no choice.

        Args:
            counts: element symbol, in the order of atomic numbers, to its number of atoms.
        """
        return any(_reaches_zero(states, list(counts.values())) for states in self._choices(counts))

    def balanced_states(self, counts: Mapping[str, int]) -> dict[str, int] | None:
        """Returns the most common of the choices that `is_balanced` accepts, as charges by element; None if there is
        none.

        The most common choice is the one with the fewest elements in states that pymatgen does not list as common.

        Args:
            counts: as in `is_balanced`.
        """
        found = [
            choice
            for states in self._choices(counts)
            if (choice := _cheapest_neutral(list(counts), states, list(counts.values()))) is not None
        ]
        if not found:
            return None
        _, charges = min(found)
        return dict(zip(counts, charges, strict=True))

    def _choices(self, counts: Mapping[str, int]) -> Iterator[list[list[int]]]:
        """Yields the allowed states of each element, for every way to pass Pauling's test."""
        states = [self.states.get(element, ()) for element in counts]
        chi = [self.electronegativity.get(element) for element in counts]
        for signs in _sign_patterns(states, chi):
            yield [[q for q in qs if q * sign > 0] for qs, sign in zip(states, signs, strict=True)]


def load_oxidation_table(name: str = "smact14", *, zr_as_in_paper: bool = False) -> OxidationTable:
    """Reads the tables that the package contains.

    Args:
        name: "smact14", the list behind the published figures, or "icsd24", SMACT's default since version 3.
        zr_as_in_paper: use χ(Zr) = 0.33, the typing error in force when the paper was written.

    Raises:
        UserError: there is no such table.
    """
    if name not in OXIDATION_STATES:
        raise UserError(f"no oxidation states {name!r}; --oxidation_states is one of {', '.join(OXIDATION_STATES)}")
    states = {symbol: tuple(int(word) for word in words) for symbol, *words in _rows(name)}
    electronegativity = {symbol: float(word) for symbol, word in _rows("electronegativity")}
    if zr_as_in_paper:
        electronegativity["Zr"] = ZR_ELECTRONEGATIVITY_IN_PAPER
    return OxidationTable(name, states, electronegativity, frozenset(symbol for (symbol,) in _rows("metals")))


def _rows(name: str) -> Iterator[list[str]]:
    text = resources.files("crystal_jax.evaluate").joinpath("tables", f"{name}.txt").read_text(encoding="utf-8")
    return (line.split() for line in text.splitlines() if not line.startswith("#"))


def _sign_patterns(states: Sequence[Sequence[int]], chi: Sequence[float | None]) -> Iterator[tuple[int, ...]]:
    """Yields, for every way to pass Pauling's test, the sign (+1 or -1) of each element's charge.

    If all electronegativities are known, passing means that a threshold separates cations (at or below it) from anions
    (above it), so there are at most as many patterns as elements.
    """
    known = [x for x in chi if x is not None]
    if len(known) == len(chi):
        yield from (tuple(1 if x <= cut else -1 for x in known) for cut in sorted(set(known)))
        return
    signs = [sorted({1 if q > 0 else -1 for q in qs}) for qs in states]
    yield from (pattern for pattern in itertools.product(*signs) if _passes_pauling(pattern, chi))


def _passes_pauling(signs: Sequence[int], chi: Sequence[float | None]) -> bool:
    """Compares pairs in order of atomic number until one decides; a missing χ also decides (see `is_balanced`)."""
    for (sign, x), (other_sign, y) in itertools.combinations(zip(signs, chi, strict=True), 2):
        if x is None or y is None:
            return sign != other_sign
        if sign == other_sign:
            continue
        if (y - x) * sign <= 0:  # the cation is not the less electronegative one
            return False
    return True


def _reaches_zero(states: Sequence[Sequence[int]], counts: Sequence[int]) -> bool:
    """Whether one state per element can be chosen so that Σ state · count = 0."""
    sums = {0}
    for qs, count in zip(states, counts, strict=True):
        sums = {total + q * count for total in sums for q in qs}
    return 0 in sums


def _cheapest_neutral(
    elements: Sequence[str], states: Sequence[Sequence[int]], counts: Sequence[int]
) -> tuple[int, tuple[int, ...]] | None:
    """Returns the cost and the charges of the most common neutral choice; None if no choice is neutral."""
    sums: dict[int, tuple[int, tuple[int, ...]]] = {0: (0, ())}
    for element, qs, count in zip(elements, states, counts, strict=True):
        grown: dict[int, tuple[int, tuple[int, ...]]] = {}
        for total, (cost, charges) in sums.items():
            for q in qs:
                option = (cost + _rarity(element, q), (*charges, q))
                key = total + q * count
                if key not in grown or option < grown[key]:
                    grown[key] = option
        sums = grown
    return sums.get(0)


@functools.cache
def _rarity(element: str, charge: int) -> int:
    """Returns 0 for a common oxidation state of an element, 1 for another state that occurs in the ICSD, 3 for any
    other.
    """
    known = Element(element)
    if charge in known.common_oxidation_states:
        return 0
    return 1 if charge in known.icsd_oxidation_states else 3
