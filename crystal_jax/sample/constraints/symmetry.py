"""Guide of texts by symmetry: the positions of the space group, and atoms that add up to the composition.

The automaton (text/grammar/wyckoff.py) accepts any position after any element, and up to three coordinates. This guide
allows the space groups in which the composition is possible, or the one that is asked for; then positions of the group
with which the missing atoms can still be placed (`symmetry.occupation`); and as many coordinates as the position has
free ones. Nothing that it allows leads to a dead end, and nothing that is possible is forbidden.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool

from crystal_jax.errors import RequestError
from crystal_jax.sample.constraints.guide import AllowedValues
from crystal_jax.symmetry.lattices import lattice_parameters
from crystal_jax.symmetry.occupation import next_letters, possible_spacegroups
from crystal_jax.symmetry.operations import standard_operations
from crystal_jax.symmetry.positions import WyckoffPosition, position, positions
from crystal_jax.text.grammar.automaton import END, TokenAutomaton
from crystal_jax.text.grammar.wyckoff import FIRST_ORBIT, ORBIT_FIELDS
from crystal_jax.text.layout import in_order

# Element, position (None before it is written), and coordinates of an orbit.
OrbitFields = tuple[str, WyckoffPosition | None, list[str]]
POSITION, COORDINATES = 1, 2  # fields of an orbit after its element


class SymmetryGuide:
    """Guide of one composition.

    Args:
        automaton: of `wyckoff_automaton`.
        composition: atoms of each element in the primitive cell.
        spacegroup: number of the space group, if one is asked for.

    Raises:
        RequestError: no space group, or not the one that is asked for, has positions for this composition.
    """

    def __init__(self, automaton: TokenAutomaton, composition: Mapping[str, int], *, spacegroup: int | None = None):
        self._values = {name: automaton.values[part] for name, part in automaton.fields.items()}
        self._elements = in_order(composition)
        self._counts = [composition[element] for element in self._elements]
        possible = possible_spacegroups(tuple(sorted(self._counts)))
        if spacegroup is not None:
            if spacegroup not in possible:
                formula = "".join(f"{e}{n}" for e, n in zip(self._elements, self._counts, strict=True))
                raise RequestError(
                    f"the positions of space group {spacegroup} cannot be occupied with the atoms {formula}"
                )
            possible = (spacegroup,)
        self._groups = set(map(str, possible))
        self._all = np.ones(len(self._values["coordinate"]), bool)
        self._none = np.zeros(len(self._values["coordinate"]), bool)

    def __call__(self, fields: Sequence[str]) -> AllowedValues:
        """Returns the allowed values of the next fields; see `Guide`."""
        if not fields:
            return AllowedValues(
                {"spacegroup": self._mask("spacegroup", self._groups), "element": self._elements_mask(0)},
                FIRST_ORBIT + POSITION,
            )
        group = int(fields[0])
        orbits = read_orbits(group, fields[1 + len(lattice_parameters(group).free) :])
        if not orbits:
            return AllowedValues({"element": self._elements_mask(0)}, FIRST_ORBIT + POSITION)
        number = FIRST_ORBIT + ORBIT_FIELDS * (len(orbits) - 1)  # of the current orbit's element
        element, place, coordinates = orbits[-1]
        index = self._elements.index(element)
        before = [p for e, p, _ in orbits[:-1] if e == element and p is not None]
        points = standard_operations(group).num_lattice_points
        left = self._counts[index] - sum(p.multiplicity for p in before) // points
        if place is None:
            letters = next_letters(
                group,
                left,
                self._counts[index + 1 :],
                last=before[-1].letter if before else None,
                occupied=frozenset(p.letter for _, p, _ in orbits[:-1] if p is not None and not p.num_free),
            )
            allowed = {position(group, letter).symbol for letter in letters}
            return AllowedValues({"position": self._mask("position", allowed)}, number + COORDINATES)
        if len(coordinates) < place.num_free:
            nothing = np.zeros(len(self._values["element"]), bool)
            until = number + COORDINATES + place.num_free
            return AllowedValues({"coordinate": self._all, "element": nothing}, until)
        is_placed = left == place.multiplicity // points
        following = self._elements_mask(index + is_placed)
        return AllowedValues({"coordinate": self._none, "element": following}, number + ORBIT_FIELDS + POSITION)

    def _elements_mask(self, index: int) -> Bool[np.ndarray, " n"]:
        """Returns the mask of the element with this index, or of the end after the last one."""
        return self._mask("element", {self._elements[index] if index < len(self._elements) else END})

    def _mask(self, field: str, allowed: set[str]) -> Bool[np.ndarray, " n"]:
        return np.array([value in allowed for value in self._values[field]])


def read_orbits(group: int, fields: Sequence[str]) -> list[OrbitFields]:
    """Returns the orbits of the completed fields after the lattice: element, position, coordinates."""
    by_symbol = {place.symbol: place for place in positions(group)}
    found: list[OrbitFields] = []
    for field in fields:
        if not field[0].isdigit():
            found.append((field, None, []))
        elif field in by_symbol:
            found[-1] = (found[-1][0], by_symbol[field], [])
        else:
            found[-1][2].append(field)
    return found
