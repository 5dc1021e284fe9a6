"""Can the elements of a composition take charges that balance? The rule of SMACT, decided exactly and fast.

A composition is balanced if each element can be given one of its known oxidation states (the same for all its
atoms) such that the charges sum to zero and every cation is less electronegative than every anion
(Davies et al., Chem 1, 617, 2016). Trying all choices costs the product of the lists' lengths; here the signs
are fixed first, and for fixed signs the reachable sums of charges are few.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources

from crystal_jax.errors import UserError

OXIDATION_STATES = ("smact14", "icsd24")  # names of the tables, files of the folder `tables`

# χ of Zr in SMACT before 2023-10-19, and so in the paper and in CDVAE; a typing error for 1.33.
ZR_ELECTRONEGATIVITY_IN_PAPER = 0.33


@dataclasses.dataclass(frozen=True)
class OxidationTable:
    """What is known of each element.

    Attributes:
        name: which list of oxidation states this is.
        states: element symbol to its non-zero oxidation states, in units of the elementary charge.
        electronegativity: element symbol to χ on Pauling's scale; elements without a value are absent.
        metals: symbols of the elements whose alloys need no balance.
    """

    name: str
    states: Mapping[str, tuple[int, ...]]
    electronegativity: Mapping[str, float]
    metals: frozenset[str]

    def is_balanced(self, counts: Mapping[str, int]) -> bool:
        """Whether some choice of states is neutral and passes Pauling's test.

        As in the evaluator of CDVAE, a choice whose Pauling test meets a missing electronegativity passes; an
        element without states has no choice.

        Args:
            counts: element symbol, in the order of atomic numbers, to its number of atoms.
        """
        states = [self.states.get(element, ()) for element in counts]
        chi = [self.electronegativity.get(element) for element in counts]
        return any(
            _reaches_zero(
                [[q for q in qs if q * sign > 0] for qs, sign in zip(states, signs, strict=True)],
                list(counts.values()),
            )
            for signs in _sign_patterns(states, chi)
        )


def load_oxidation_table(name: str = "smact14", *, zr_as_in_paper: bool = False) -> OxidationTable:
    """Reads the tables shipped with the package.

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

    With all electronegativities known, passing means that a threshold separates cations (at or below it) from
    anions (above it), so there are at most as many patterns as elements.
    """
    known = [x for x in chi if x is not None]
    if len(known) == len(chi):
        yield from (tuple(1 if x <= cut else -1 for x in known) for cut in sorted(set(known)))
        return
    signs = [sorted({1 if q > 0 else -1 for q in qs}) for qs in states]
    yield from (pattern for pattern in itertools.product(*signs) if _passes_pauling(pattern, chi))


def _passes_pauling(signs: Sequence[int], chi: Sequence[float | None]) -> bool:
    """Compares pairs in order of atomic number until one decides; a missing χ decides for passing."""
    for (sign, x), (other_sign, y) in itertools.combinations(zip(signs, chi, strict=True), 2):
        if sign == other_sign:
            continue
        if x is None or y is None:
            return True
        if (y - x) * sign <= 0:  # the cation is not the less electronegative one
            return False
    return True


def _reaches_zero(states: Sequence[Sequence[int]], counts: Sequence[int]) -> bool:
    """Whether one state per element can be picked so that Σ state · count = 0."""
    sums = {0}
    for qs, count in zip(states, counts, strict=True):
        sums = {total + q * count for total in sums for q in qs}
    return 0 in sums
