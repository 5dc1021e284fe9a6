"""Geometric guides: cells that exist, atoms that keep their distance, and the shapes of lattice systems."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from pymatgen.core import Lattice
from pymatgen.symmetry.groups import SpaceGroup
from pymatgen.util.coord import pbc_shortest_vectors

from crystal_jax.evaluate.chemistry.validity import (
    MIN_DISTANCE,
    MIN_VOLUME,
    covalent_radius,
    shortest_vector,
    sphere_volume,
)
from crystal_jax.sample.constraints.guide import NEVER, AllowedValues, field_of_atom
from crystal_jax.text.grammar.automaton import END
from crystal_jax.text.layout import ATOM_WORDS, LATTICE_WORDS

_Z, _GAMMA = 3, 5
# A margin for rounding: the evaluator reads a CIF, whose numbers are rounded.
_SLACK = 1e-4


class ValidCell:
    """Allows the last angle γ where the cell exists, its volume is possible, and no atom is too near to its own images.

    Args:
        lengths, angles: Values of the fields `length` and `angle`, in the automaton's order.
        shortest: Minimum length of the lattice's shortest vector, in Å: the minimum distance of two atoms, or more.
        largest: Maximum volume, in Å^3.
    """

    def __init__(
        self,
        *,
        lengths: Sequence[str],
        angles: Sequence[str],
        shortest: float = MIN_DISTANCE,
        largest: float = np.inf,
    ):
        self._lengths, self._angles = _as_numbers(tuple(lengths)), _as_numbers(tuple(angles))
        self._shortest, self._largest = shortest, largest

    def __call__(self, fields: Sequence[str]) -> AllowedValues:
        """Returns the allowed lengths and values of γ; it must be called once α and β are known."""
        if len(fields) < _GAMMA:
            return AllowedValues({"length": self._lengths >= self._shortest}, _GAMMA)
        if len(fields) > _GAMMA:
            return AllowedValues({}, NEVER)
        a, b, c, alpha, beta = map(float, fields)
        # The volume is a real number where the angles satisfy the triangle inequality.
        cosines = np.cos(np.radians(np.stack(np.broadcast_arrays(alpha, beta, self._angles))))
        squared = 1 - (cosines**2).sum(axis=0) + 2 * cosines.prod(axis=0)
        forms = (abs(alpha - beta) < self._angles) & (self._angles < min(alpha + beta, 360 - alpha - beta))
        volumes = a * b * c * np.sqrt(np.maximum(squared, 0))
        possible = forms & (volumes > MIN_VOLUME + _SLACK) & (volumes < self._largest * (1 - _SLACK))
        ones, (cos_alpha, cos_beta, cos_gamma) = np.ones(possible.sum()), cosines[:, possible]
        products = np.array([[ones, cos_gamma, cos_beta], [cos_gamma, ones, cos_alpha], [cos_beta, cos_alpha, ones]])
        metrics = np.moveaxis(products, -1, 0) * np.outer([a, b, c], [a, b, c])
        possible[possible] = _no_shorter_vector(self._shortest + _SLACK, metrics)
        return AllowedValues({"angle": possible}, NEVER)


@functools.lru_cache(maxsize=16)  # each sample with a known composition builds its own guide
def _as_numbers(values: tuple[str, ...]) -> Float[np.ndarray, " n"]:
    return np.array(values, float)


def _no_shorter_vector(length: float, metrics: Float[np.ndarray, "n 3 3"]) -> Bool[np.ndarray, " n"]:
    """Returns True for lattices, by their metric tensors, without a nonzero vector shorter than `length`."""
    # The coefficients of a lattice vector are its products with the reciprocal vectors, so those of a short vector are
    # rarely 1 or more. Where they are, few vectors are left to try.
    reciprocal = np.sqrt(np.diagonal(np.linalg.inv(metrics), axis1=1, axis2=2))
    most = np.floor(length * reciprocal).astype(int)
    longer = np.ones(len(metrics), bool)
    for largest in {tuple(row) for row in most[most.any(axis=1)].tolist()}:
        chosen = (most == largest).all(axis=1)
        squares = metrics[chosen].reshape(-1, 9) @ _coefficient_products(largest)
        longer[chosen] = (squares >= length**2).all(axis=1)
    return longer


@functools.lru_cache(maxsize=4096)
def _coefficient_products(largest: tuple[int, ...]) -> Float[np.ndarray, "9 v"]:
    """Returns the products of coefficients that a metric tensor is multiplied with to square a vector's length.

    The vectors have whole coefficients up to these magnitudes: all but zero, and one of each pair of opposite ones.
    """
    every = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in largest), indexing="ij"), axis=-1).reshape(-1, 3)
    vectors = every[len(every) // 2 + 1 :].astype(float)
    products: Float[np.ndarray, "9 v"] = (vectors[:, :, None] * vectors[:, None]).reshape(-1, 9).T
    return products


class KeepsDistance:
    """Allows the last coordinate of an atom where no earlier atom is too near, periodic images included.

    With `elements`, it allows an element only if the lattice keeps the atom far enough from its own images, and the end
    only if the cell is not too large for its atoms. Where the composition is known before the lattice, `ValidCell`
    checks both, and slots wait once per atom instead of twice.

    Args:
        values: Values of the field `z`, fractional, in the automaton's order.
        elements: Values of the field `element`, with its end; None allows all of them.
        shortest: Minimum distance of two atoms, in Å.
        radii: Minimum distance as a share of the sum of two covalent radii; the larger of the two minima holds.
        max_volume_factor: With elements: maximum volume of a cell, in units of its van der Waals spheres.
        max_atoms: With elements: number of atoms after which the sequence ends without a choice.
    """

    def __init__(
        self,
        values: Sequence[str],
        *,
        elements: Sequence[str] | None = None,
        shortest: float = MIN_DISTANCE,
        radii: float = 0.0,
        max_volume_factor: float = np.inf,
        max_atoms: int = 0,
    ):
        self._z, self._shortest, self._radii = _as_numbers(tuple(values)), shortest, radii
        own = [2 * radii * covalent_radius(symbol) for symbol in elements or ()]
        self._own_distance = np.array(own) if any(own) else None
        self._is_end = np.array([symbol == END for symbol in elements or ()])
        self._spheres = np.array([0.0 if symbol == END else sphere_volume([symbol]) for symbol in elements or ()])
        self._volume_factor, self._max_atoms = max_volume_factor, max_atoms

    def __call__(self, fields: Sequence[str]) -> AllowedValues:
        """Returns the allowed elements or z; it must be called once x and y are known, and at each element."""
        atom, part = divmod(len(fields) - LATTICE_WORDS, ATOM_WORDS)
        asks_elements = self._own_distance is not None
        if len(fields) < LATTICE_WORDS:
            return AllowedValues({}, LATTICE_WORDS if asks_elements else field_of_atom(1, _Z))
        if part == 0 and self._own_distance is not None:
            shortest, volume = _lattice_facts(tuple(fields[:LATTICE_WORDS]))
            possible = self._own_distance + _SLACK <= shortest
            filled = sphere_volume(fields[LATTICE_WORDS::ATOM_WORDS])
            is_filled = volume * (1 + _SLACK) <= self._volume_factor * (filled + self._spheres)
            possible &= is_filled | ~(self._is_end | (atom + 1 == self._max_atoms))
            return AllowedValues({"element": possible}, field_of_atom(atom, _Z) if atom else field_of_atom(1, 0))
        if atom == 0:
            return AllowedValues({}, field_of_atom(1, 0 if asks_elements else _Z))  # no earlier atom
        if part != _Z:
            return AllowedValues({}, field_of_atom(atom, _Z))
        symbols = fields[LATTICE_WORDS::ATOM_WORDS]
        places = np.array(
            [[float(v) for v in fields[field_of_atom(i, 1) : field_of_atom(i, 1) + 3]] for i in range(atom)]
        )  # fractional
        x, y = map(float, fields[-2:])
        candidates = np.column_stack([np.full_like(self._z, x), np.full_like(self._z, y), self._z])
        lattice = _lattice(tuple(fields[:LATTICE_WORDS]))
        _, squares = pbc_shortest_vectors(lattice, candidates, places, return_d2=True)
        return AllowedValues(
            {"z": (squares >= (self._apart(symbols) + _SLACK) ** 2).all(axis=1)},
            field_of_atom(atom + 1, 0 if asks_elements else _Z),
        )

    def _apart(self, symbols: Sequence[str]) -> Float[np.ndarray, " n"]:
        """Returns the minimum distance of the last of these atoms from each of the others, in Å."""
        own, *others = (covalent_radius(symbol) for symbol in reversed(symbols))
        return np.maximum(self._shortest, self._radii * (own + np.array(others[::-1])))


@functools.lru_cache(maxsize=1024)  # called once per atom of each running sequence
def _lattice(cell: tuple[str, ...]) -> Lattice:
    return Lattice.from_parameters(*map(float, cell))


@functools.lru_cache(maxsize=1024)
def _lattice_facts(cell: tuple[str, ...]) -> tuple[float, float]:
    """Returns the length of a lattice's shortest vector in Å, and its volume in Å^3."""
    lattice = _lattice(cell)
    return shortest_vector(lattice.get_lll_reduced_lattice().matrix), lattice.volume


class LatticeSystem:
    """Allows the cells of a space group's lattice system (International Tables A, 2.1.2.1).

    The rules are equal lengths and fixed or equal angles. For face- and body-centred cubic and for rhombohedral groups,
    primitive cells are allowed, too, since data sets of primitive cells contain them. For other centred groups, only
    the conventional cell has a shape of its own.

    Args:
        spacegroup: Number of the space group, 1 to 230.
        lengths, angles: Values of the fields `length` and `angle`, in the automaton's order.
    """

    def __init__(self, spacegroup: int, *, lengths: Sequence[str], angles: Sequence[str]):
        self._values = {"length": np.array(lengths), "angle": np.array(angles)}
        self._shapes = _shapes(spacegroup)

    def __call__(self, fields: Sequence[str]) -> AllowedValues:
        """Returns the allowed values of the next length or angle; it must be called at each of them."""
        turn = len(fields)
        if turn >= LATTICE_WORDS:
            return AllowedValues({}, NEVER)
        field = "length" if turn < 3 else "angle"
        values = self._values[field]
        possible = np.zeros(len(values), bool)
        for shape in self._shapes:
            meant = [fields[rule] if isinstance(rule, int) and rule < turn else rule for rule in shape]
            if all(rule in (None, value) for rule, value in zip(meant, fields, strict=False)):
                possible |= values == meant[turn] if meant[turn] else True
        return AllowedValues({field: possible}, turn + 1 if turn + 1 < LATTICE_WORDS else NEVER)


# Rule for each length and angle: any value (None), the value of an earlier field (its number), or this value.
_Shape = tuple[int | str | None, ...]

_CUBIC: _Shape = (None, 0, 0, "90", "90", "90")
_FACE_CENTRED: _Shape = (None, 0, 0, "60", "60", "60")
_BODY_CENTRED: _Shape = (None, 0, 0, "109", "109", "109")  # 109.47°
_HEXAGONAL: _Shape = (None, 0, None, "90", "90", "120")
_RHOMBOHEDRAL: _Shape = (None, 0, 0, None, 3, 3)
_TETRAGONAL: _Shape = (None, 0, None, "90", "90", "90")
_ORTHORHOMBIC: _Shape = (None, None, None, "90", "90", "90")
_MONOCLINIC: _Shape = (None, None, None, "90", None, "90")  # unique axis b
_TRICLINIC: _Shape = (None,) * 6


@functools.cache
def _shapes(spacegroup: int) -> tuple[_Shape, ...]:
    group = SpaceGroup.from_int_number(spacegroup)
    match group.crystal_system, group.symbol[0]:
        case "cubic", "F":
            return _CUBIC, _FACE_CENTRED
        case "cubic", "I":
            return _CUBIC, _BODY_CENTRED
        case "cubic", _:
            return (_CUBIC,)
        case "trigonal", "R":
            return _RHOMBOHEDRAL, _HEXAGONAL
        case (("trigonal" | "hexagonal"), _):
            return (_HEXAGONAL,)
        case "tetragonal", _:
            return (_TETRAGONAL,)
        case "orthorhombic", _:
            return (_ORTHORHOMBIC,)
        case "monoclinic", _:
            return (_MONOCLINIC,)
        case _:
            return (_TRICLINIC,)
