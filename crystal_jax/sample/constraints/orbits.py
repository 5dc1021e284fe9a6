"""Guide of texts by symmetry: atoms of an orbit keep their distance from all others, and from each other."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

from crystal_jax.evaluate.chemistry.validity import MIN_DISTANCE, MIN_VOLUME, covalent_radius, sphere_volume
from crystal_jax.sample.constraints.geometry import ValidCell
from crystal_jax.sample.constraints.guide import AllowedValues
from crystal_jax.sample.constraints.symmetry import COORDINATES, POSITION, OrbitFields, read_orbits
from crystal_jax.symmetry.lattices import lattice_parameters
from crystal_jax.symmetry.operations import standard_operations
from crystal_jax.symmetry.positions import WyckoffPosition, positions
from crystal_jax.text.grammar.automaton import TokenAutomaton
from crystal_jax.text.grammar.wyckoff import FIRST_ORBIT, ORBIT_FIELDS

_FIRST_PARAMETER = 1  # number of the field a; b, c, α, β, γ follow
_NUM_LENGTHS = 3
_TRICLINIC = 6  # free lattice parameters
_SLACK = 0.02  # Å: a text has two decimals, and the evaluator reads a CIF made of it
_NEIGHBOURS = np.array(list(itertools.product((-1, 0, 1), repeat=3)), float)  # cells around one, itself in the middle


class OrbitDistance:
    """Allows positions and coordinates where no two atoms are too near, periodic images included.

    All atoms of an orbit are images of one by operations of the group, so its distances from the atoms that are there
    are the distances of all. A position without freedom is judged before it is chosen, others at their last coordinate.

    The cell is not mostly empty, and no longer vector maps an atom to itself than its radius allows: the last free
    parameter of the lattice is judged by the volume, which the others leave open.

    Args:
        automaton: of `wyckoff_automaton`.
        composition: atoms of each element in the primitive cell.
        shortest: minimum distance of two atoms, in Å.
        radii: minimum distance as a share of the sum of two covalent radii; the larger of the two minima holds.
        max_volume_factor: maximum volume of a cell, in units of its van der Waals spheres.
    """

    def __init__(
        self,
        automaton: TokenAutomaton,
        composition: Mapping[str, int],
        *,
        shortest: float = MIN_DISTANCE,
        radii: float = 0.0,
        max_volume_factor: float = math.inf,
    ):
        values = {name: automaton.values[part] for name, part in automaton.fields.items()}
        self._symbols = values["position"]
        self._coordinates = np.array(values["coordinate"], float)
        self._shortest, self._radii = shortest, radii
        largest = max(covalent_radius(symbol) for symbol in composition)
        self._translation = max(shortest, 2 * radii * largest) + _SLACK
        spheres = sum(number * sphere_volume([symbol]) for symbol, number in composition.items())
        self._volume = max_volume_factor * spheres
        self._lattice_values = {name: np.array(values[name], float) for name in ("length", "angle")}
        self._cell = functools.partial(
            ValidCell, lengths=values["length"], angles=values["angle"], shortest=self._translation
        )

    def __call__(self, fields: Sequence[str]) -> AllowedValues:
        """Returns the allowed values of the next fields; see `Guide`."""
        if not fields:
            return AllowedValues({}, _FIRST_PARAMETER)
        group = int(fields[0])
        free = lattice_parameters(group).free
        if len(fields) < len(free):
            long_enough = self._lattice_values["length"] >= self._translation
            return AllowedValues({"length": long_enough}, _FIRST_PARAMETER + free[-1])
        if len(fields) == len(free):
            return AllowedValues(self._last_parameter(group, fields[1:]), FIRST_ORBIT + POSITION)
        orbits = read_orbits(group, fields[1 + len(free) :])
        if not orbits:
            return AllowedValues({}, FIRST_ORBIT + POSITION)
        element, place, coordinates = orbits[-1]
        number = FIRST_ORBIT + ORBIT_FIELDS * (len(orbits) - 1)
        next_orbit = number + ORBIT_FIELDS + POSITION
        lattice, before = fields[1 : 1 + len(free)], orbits[:-1]
        if place is None:
            return AllowedValues({"position": self._positions(group, lattice, before, element)}, number + COORDINATES)
        missing = place.num_free - len(coordinates)
        if missing > 1:
            return AllowedValues({}, number + COORDINATES + place.num_free - 1)
        if missing < 1:
            return AllowedValues({}, next_orbit)
        given = np.array(coordinates, float)
        parameters = np.column_stack([np.tile(given, (len(self._coordinates), 1)), self._coordinates])
        far = self._apart(group, lattice, before, element, place, parameters)
        return AllowedValues({"coordinate": far}, next_orbit)

    def _last_parameter(self, group: int, given: Sequence[str]) -> Mapping[str, Bool[np.ndarray, " n"]]:
        """Returns the masks of the last free parameter of a lattice, given the others."""
        largest = self._volume * standard_operations(group).num_lattice_points
        rules = lattice_parameters(group)
        if len(rules.free) == _TRICLINIC:
            return self._cell(largest=largest)(given).open
        numbers = [float(x) for x in given]
        if rules.free[-1] < _NUM_LENGTHS:
            lengths = self._lattice_values["length"]
            # The volume grows with the last length, or in cubic groups with its third power.
            volumes = rules.lattice([*numbers, 1.0]).volume * lengths ** rules.equal_to.count(rules.free[-1])
            allowed = (lengths >= self._translation) & (volumes > MIN_VOLUME) & (volumes < largest)
            return {"length": allowed}
        a, b, c = numbers  # a monoclinic cell is as thin as its angle makes it
        height = np.sin(np.radians(self._lattice_values["angle"]))
        volumes = a * b * c * height
        allowed = (min(a, c) * height >= self._translation) & (volumes > MIN_VOLUME) & (volumes < largest)
        return {"angle": allowed}

    def _positions(
        self,
        group: int,
        lattice: Sequence[str],
        before: Sequence[OrbitFields],
        element: str,
    ) -> Bool[np.ndarray, " n"]:
        """Returns the mask of positions: those with freedom, and those without that are far enough from all atoms."""
        far = {
            place.symbol
            for place in positions(group)
            if place.num_free or self._apart(group, lattice, before, element, place, np.zeros((1, 0)))[0]
        }
        return np.array([symbol in far for symbol in self._symbols])

    def _apart(
        self,
        group: int,
        lattice: Sequence[str],
        before: Sequence[OrbitFields],
        element: str,
        place: WyckoffPosition,
        parameters: Float[np.ndarray, "c k"],
    ) -> Bool[np.ndarray, " c"]:
        """Returns whether the atoms of an orbit with these parameters are far enough from each other and all others."""
        matrix = _matrix(group, tuple(lattice))
        images = np.stack([place.points(row) for row in parameters])  # [c, m, 3]
        first = images[:, :1]
        own = _squares(images - first, matrix)  # [c, m]
        own[:, 0] = _shortest_translation(group, tuple(lattice)) ** 2  # an atom's images in other cells
        far: Bool[np.ndarray, " c"] = own.min(axis=1) >= self._least(element, element) ** 2
        for other, position, coordinates in before:
            assert position is not None
            points = position.points([float(x) for x in coordinates])
            squares = _squares(points[None] - first, matrix)
            far &= squares.min(axis=1) >= self._least(element, other) ** 2
        return far

    def _least(self, one: str, other: str) -> float:
        return max(self._shortest, self._radii * (covalent_radius(one) + covalent_radius(other))) + _SLACK


def _squares(apart: Float[np.ndarray, "c n 3"], matrix: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "c n"]:
    """Returns the squared distances in Å^2 of fractional differences, to the nearest periodic image."""
    near = apart - np.round(apart)
    vectors = (near[:, :, None] + _NEIGHBOURS) @ matrix
    squares: Float[np.ndarray, "c n"] = np.square(vectors).sum(axis=-1).min(axis=-1)
    return squares


@functools.lru_cache(maxsize=1024)  # called several times for each running sequence
def _matrix(group: int, lattice: tuple[str, ...]) -> Float[np.ndarray, "3 3"]:
    matrix: Float[np.ndarray, "3 3"] = lattice_parameters(group).lattice([float(x) for x in lattice]).matrix
    return matrix


@functools.lru_cache(maxsize=1024)
def _shortest_translation(group: int, lattice: tuple[str, ...]) -> float:
    """Returns the length of the shortest translation of the conventional cell, in Å."""
    lengths = np.linalg.norm(np.delete(_NEIGHBOURS, len(_NEIGHBOURS) // 2, axis=0) @ _matrix(group, lattice), axis=1)
    return float(lengths.min())
