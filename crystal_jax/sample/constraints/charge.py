"""Charge balance: a guide that only allows compositions whose charges can balance.

An element is allowed if some number of further atoms, of any elements that the sequence may use, makes the composition
valid by the rule of the evaluator: one oxidation state per element, charges that sum to zero, and every cation less
electronegative than every anion (Davies et al., Chem 1, 617, 2016). Pure elements and alloys of metals are valid
without balance. The rule is decided exactly for elements whose electronegativity is known; other elements take no part
in compounds.

For a fixed threshold of electronegativity, each element is either a cation or an anion. The contribution of further
atoms is then a set of pairs (number of atoms, sum of charges). The set is stored in the bits of one integer, with bit
`atoms · width + charge + zero` for each pair, so that adding an atom of charge q to all pairs is one shift by `width +
q`. Near the end of a sequence few atoms may follow, and the integers are short.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Bool

from crystal_jax.evaluate.chemistry.oxidation import OxidationTable
from crystal_jax.sample.constraints.guide import AllowedValues, field_of_atom
from crystal_jax.text.grammar.automaton import END
from crystal_jax.text.layout import ATOM_WORDS, LATTICE_WORDS

# Thresholds are tried from this value outwards: the ions of most oxides, halides and sulfides separate near it.
_USUAL_THRESHOLD = 2.2

Counts = tuple[tuple[str, int], ...]
States = tuple[int, ...]

_KEPT = 20_000  # cached results, a few kilobytes each; bounded, since an untrained model keeps meeting new elements
_FURTHER = (1, 2, 4, 8)  # numbers of further atoms that results are cached for; rounding up lets them be reused


class ChargeBalance:
    """The charge-balance guide of one request.

    Args:
        table: Oxidation states and electronegativities.
        values: Values of the field `element`, in the automaton's order.
        elements: Elements that the sequence may use.
        min_atoms, max_atoms: Limits on the number of atoms in the cell.
    """

    def __init__(
        self,
        table: OxidationTable,
        values: Sequence[str],
        *,
        elements: Sequence[str],
        min_atoms: int = 1,
        max_atoms: int = 20,
    ):
        self._table, self._values = table, values
        self._elements = tuple(element for element in elements if element in values)
        self._min_atoms, self._max_atoms = min_atoms, max_atoms
        charged = [e for e in self._elements if table.states.get(e) and e in table.electronegativity]
        self._charged = frozenset(charged)
        self._zero = max_atoms * max((abs(q) for e in charged for q in table.states[e]), default=0)
        self._width = 2 * self._zero + 1
        self._row = (1 << self._width) - 1
        self._masks = [(1 << self._width * (atoms + 1)) - 1 for atoms in range(max_atoms + 1)]
        thresholds = {table.electronegativity[e] for e in charged}
        self._thresholds = sorted(thresholds, key=lambda x: abs(x - _USUAL_THRESHOLD))
        self._open_after = functools.lru_cache(maxsize=100_000)(self._find_open)
        self._others = functools.lru_cache(_KEPT)(lambda spare, most: self._rows(self._brought(spare, most), most))
        self._brought = functools.lru_cache(_KEPT)(self._find_brought)
        self._states = functools.cache(self._find_states)
        self._classes = functools.cache(self._find_classes)

    def __call__(self, fields: Sequence[str]) -> AllowedValues:
        """Returns the elements that may come next, and whether the crystal may end."""
        symbols = fields[LATTICE_WORDS::ATOM_WORDS]
        # Sorted, since the order of the atoms does not matter.
        open_values = self._open_after(tuple(sorted(Counter(symbols).items())))
        return AllowedValues({"element": open_values}, field_of_atom(len(symbols) + 1, 0))

    def is_valid(self, counts: Mapping[str, int]) -> bool:
        """Whether a composition is valid without further atoms."""
        if len(counts) == 1 or self._table.metals.issuperset(counts):
            return True
        neutral = 1 << self._zero
        return self._charged.issuperset(counts) and any(
            self._own(tuple(counts.items()), x, "", 0) & neutral for x in self._thresholds_of(counts)
        )

    def _find_open(self, counts: Counts) -> Bool[np.ndarray, " n"]:
        have = dict(counts)
        atoms = sum(have.values())
        found = set()
        if have and atoms >= self._min_atoms and self.is_valid(have):
            found.add(END)
        if left := self._max_atoms - atoms:
            plain = {e for e in self._elements if len({*have, e}) == 1 or self._table.metals.issuperset({*have, e})}
            found |= plain
            if self._charged.issuperset(have):
                found |= self._completable(counts, self._charged - plain, least=self._min_atoms - atoms, left=left)
        return np.array([value in found for value in self._values])

    def _completable(self, counts: Counts, candidates: frozenset[str], *, least: int, left: int) -> set[str]:
        """Returns the candidates with which, and at most `left` further atoms in total, charges can balance."""
        have, found = dict(counts), set[str]()
        most = min((number for number in _FURTHER if left <= number <= self._max_atoms), default=self._max_atoms)
        for threshold in self._thresholds_of(have):
            if not any(self._states(element, threshold) for element in candidates - found):
                continue
            own = self._own(counts, threshold, "", most)
            classes = self._classes(threshold)
            absent = {states: [e for e in members if e not in have] for states, members in classes.items()}
            spare = {states: min(len(members), len(states)) for states, members in absent.items()}
            everyone = self._others(tuple(spare.items()), most)
            if not self._meets(own, everyone, max(least, 1), left):
                continue  # no candidate balances the charges
            for element in have.keys() & (candidates - found):
                if self._meets(self._own(counts, threshold, element, most), everyone, least, left):
                    found.add(element)
            for states, members in absent.items():
                if wanted := candidates.intersection(members) - found:
                    # The candidate is one of these elements, so one fewer of them is left.
                    fewer = {**spare, states: min(len(members) - 1, len(states))}
                    grown = 0
                    for q in states:
                        grown |= self._repeat(self._add(own, q, most), q, most)
                    if self._meets(grown, self._others(tuple(fewer.items()), most), least, left):
                        found |= wanted
            if candidates <= found:
                break
        return found

    def _thresholds_of(self, elements: Iterable[str]) -> Iterator[float]:
        """Yields the thresholds at which each of the elements has an oxidation state."""
        return (x for x in self._thresholds if all(self._states(element, x) for element in elements))

    def _own(self, counts: Counts, threshold: float, needed: str, most: int) -> int:
        """Returns the pairs (further atoms, total charge) of `counts` and up to `most` further atoms of its elements.

        If `needed` is an element, at least one of the further atoms is of it.
        """
        sums = 1 << self._zero
        for element, number in counts:
            grown = 0
            for q in self._states(element, threshold):
                start = _shift(sums, number * q)
                if element == needed:
                    start = self._add(start, q, most)
                grown |= self._repeat(start, q, most)
            sums = grown
        return sums

    def _find_brought(self, spare: tuple[tuple[States, int], ...], most: int) -> int:
        """Returns the pairs (atoms, negated charge) that up to `most` atoms of elements not yet present can contribute.

        Elements with the same oxidation states are interchangeable. If a group shares n states, n of its elements are
        enough to realise any choice of states.
        """
        if not spare:
            return 1 << self._zero
        *before, (states, number) = spare
        sums = self._brought(tuple(before), most)
        for _ in range(number):
            for grown in [self._repeat(self._add(sums, -q, most), -q, most) for q in states]:
                sums |= grown
        return sums

    def _rows(self, sums: int, most: int) -> list[int]:
        """Returns the charges, as bits, for each number of atoms up to `most`."""
        return [(sums >> self._width * atoms) & self._row for atoms in range(most + 1)]

    def _add(self, sums: int, q: int, most: int, number: int = 1) -> int:
        """Returns the pairs after `number` further atoms of charge q; pairs with more than `most` atoms are dropped."""
        return (sums << number * (self._width + q)) & self._masks[most]

    def _repeat(self, sums: int, q: int, most: int) -> int:
        """Returns the pairs after any number of further atoms of charge q."""
        number = 1
        while number <= most:
            sums |= self._add(sums, q, most, number)
            number *= 2
        return sums

    def _meets(self, ours: int, others: Sequence[int], least: int, left: int) -> bool:
        """Whether a charge of `ours` equals a negated one of `others`, with `least` to `left` atoms in total."""
        mine = self._rows(ours, left)
        return any(
            mine[one] and mine[one] & others[other]
            for one in range(left + 1)
            for other in range(max(least - one, 0), left - one + 1)
        )

    def _find_states(self, element: str, threshold: float) -> States:
        """Returns the oxidation states of an element on its side of the threshold."""
        cation = self._table.electronegativity[element] <= threshold
        return tuple(q for q in self._table.states[element] if (q > 0) == cation)

    def _find_classes(self, threshold: float) -> dict[States, list[str]]:
        """Returns the elements grouped by their oxidation states, large groups first.

        The contribution of a large group hardly depends on the elements present, so results cached for it are reused.
        """
        classes: dict[States, list[str]] = {}
        for element in sorted(self._charged):
            if states := self._states(element, threshold):
                classes.setdefault(states, []).append(element)
        return dict(sorted(classes.items(), key=lambda item: -len(item[1])))


def _shift(bits: int, by: int) -> int:
    return bits << by if by >= 0 else bits >> -by
