"""Decides which Wyckoff positions can be occupied, so that multiplicities add up to a composition.

The orbits of a crystal are chosen one after the other: element by element, each in the order of its letters. Here it is
decided exactly which letter may come next: one after which the numbers of atoms can still be completed. A position
without free parameters has one place, which a single element can occupy once; positions with free parameters can be
occupied any number of times.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from crystal_jax.symmetry.operations import NUM_GROUPS, standard_operations
from crystal_jax.symmetry.positions import positions

Places = tuple[tuple[int, int], ...]  # multiplicities, ascending, and numbers of positions without freedom left


class Site(NamedTuple):
    """Wyckoff position as needed for counting.

    Attributes:
        letter: its letter.
        atoms: number of atoms of an orbit in the primitive cell.
        is_free: whether it has free parameters.
    """

    letter: str
    atoms: int
    is_free: bool


@functools.cache
def sites(spacegroup: int) -> tuple[Site, ...]:
    """Returns the positions of a space group in the order of their letters."""
    points = standard_operations(spacegroup).num_lattice_points
    return tuple(Site(p.letter, p.multiplicity // points, bool(p.num_free)) for p in positions(spacegroup))


@functools.lru_cache(maxsize=10_000)
def possible_spacegroups(counts: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the space groups whose positions can be occupied with these numbers of atoms.

    Args:
        counts: atoms of each element in the primitive cell.
    """
    ordered = tuple(sorted(counts))
    return tuple(
        number
        for number in range(1, NUM_GROUPS + 1)
        if _can_fill(number, ordered, _places(site for site in sites(number) if not site.is_free))
    )


def next_letters(
    spacegroup: int, left: int, later: Sequence[int], *, last: str | None, occupied: frozenset[str]
) -> tuple[str, ...]:
    """Returns the letters that the next orbit of an element may have.

    Args:
        spacegroup: number of the space group.
        left: atoms of the element that are still missing in the primitive cell.
        later: atoms of each element that comes after it.
        last: letter of the element's last orbit; None before the first.
        occupied: letters of positions without freedom that are occupied.
    """
    found = []
    letters = [site.letter for site in sites(spacegroup)]
    for site in sites(spacegroup):
        if site.atoms > left or (not site.is_free and site.letter in occupied):
            continue
        if last is not None and letters.index(site.letter) < letters.index(last):
            continue
        taken = occupied if site.is_free else occupied | {site.letter}
        if _can_finish(spacegroup, left - site.atoms, tuple(sorted(later)), site.letter, taken):
            found.append(site.letter)
    return tuple(found)


@functools.lru_cache(maxsize=100_000)
def _can_finish(spacegroup: int, left: int, later: tuple[int, ...], last: str, occupied: frozenset[str]) -> bool:
    """Whether an element's missing atoms can be placed from a letter on, and the later elements' anywhere."""
    every = sites(spacegroup)
    start = next(i for i, site in enumerate(every) if site.letter == last)
    vacant = [site for site in every if not site.is_free and site.letter not in occupied]
    own = _places(site for site in vacant if site in every[start + 1 :])
    everywhere = dict(_places(vacant))
    free = _sums(tuple(sorted({site.atoms for site in every[start:] if site.is_free})), left)
    for used, atoms in _choices(own, left):
        if free >> (left - atoms) & 1:
            rest = tuple((size, number - used.get(size, 0)) for size, number in everywhere.items())
            if _can_fill(spacegroup, later, rest):
                return True
    return False


@functools.lru_cache(maxsize=100_000)
def _can_fill(spacegroup: int, counts: tuple[int, ...], places: Places) -> bool:
    """Whether elements with these numbers of atoms can be placed, given the vacant positions without freedom."""
    if not counts:
        return True
    left, *later = counts
    free = _sums(tuple(sorted({site.atoms for site in sites(spacegroup) if site.is_free})), left)
    for used, atoms in _choices(places, left):
        if free >> (left - atoms) & 1:
            rest = tuple((size, number - used.get(size, 0)) for size, number in places)
            if _can_fill(spacegroup, tuple(later), rest):
                return True
    return False


def _places(vacant: Iterable[Site]) -> Places:
    counts: dict[int, int] = {}
    for site in vacant:
        counts[site.atoms] = counts.get(site.atoms, 0) + 1
    return tuple(sorted(counts.items()))


@functools.lru_cache(maxsize=10_000)
def _choices(places: Places, most: int) -> tuple[tuple[dict[int, int], int], ...]:
    """Returns how many positions of each multiplicity may be used, with the number of atoms on them."""
    found: list[tuple[dict[int, int], int]] = [({}, 0)]
    for size, number in places:
        found = [
            ({**used, size: n}, atoms + n * size)
            for used, atoms in found
            for n in range(number + 1)
            if atoms + n * size <= most
        ]
    return tuple(found)


@functools.lru_cache(maxsize=10_000)
def _sums(sizes: tuple[int, ...], most: int) -> int:
    """Returns, as bits, the numbers up to `most` that are sums of these sizes, each taken any number of times."""
    sums = 1
    for size in sizes:
        step = size
        while step <= most:
            sums |= sums << step
            step *= 2
    return sums & ((1 << (most + 1)) - 1)
