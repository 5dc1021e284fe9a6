"""Which positions may be occupied next, against the enumeration of all crystals."""

import functools

import pytest

from crystal_jax.symmetry.occupation import next_letters, possible_spacegroups, sites


def enumerated(spacegroup, counts):
    """Returns all ways to place elements with these numbers of atoms: a tuple of letters for each element."""
    every = sites(spacegroup)

    def fill(left, start, occupied):
        if left == 0:
            yield (), occupied
        for i in range(start, len(every)):
            site = every[i]
            if site.atoms > left or (not site.is_free and site.letter in occupied):
                continue
            taken = occupied if site.is_free else occupied | {site.letter}
            for letters, after in fill(left - site.atoms, i, taken):
                yield (site.letter, *letters), after

    def elements(rest, occupied):
        if not rest:
            yield ()
            return
        for letters, after in fill(rest[0], 0, occupied):
            for others in elements(rest[1:], after):
                yield (letters, *others)

    return set(elements(tuple(counts), frozenset()))


@functools.cache
def prefixes(spacegroup, counts):
    """Returns the letters that come next after each beginning of each enumerated crystal."""
    found = {}
    for crystal in enumerated(spacegroup, counts):
        for element, letters in enumerate(crystal):
            for n, letter in enumerate(letters):
                found.setdefault((crystal[:element], letters[:n]), set()).add(letter)
    return found


@pytest.mark.parametrize(
    ("spacegroup", "counts"),
    [
        (1, (2, 1)), (2, (1, 3)), (2, (2, 4, 1)), (14, (2, 4)), (62, (4, 4)), (62, (2, 2)), (47, (1, 1, 2)),
        (47, (3, 4)), (123, (1, 1, 3)), (166, (1, 2)), (166, (2, 3)), (194, (2, 2, 2)), (216, (1, 1, 1)),
        (221, (1, 1, 3)), (221, (3, 3)), (225, (1, 1)), (225, (1, 2, 6)), (227, (2, 4)), (227, (4, 2, 8)),
        (152, (3, 6)),
    ],
)  # fmt: skip
def test_letters_are_those_of_some_crystal(spacegroup, counts):
    """No letter is offered that leads to a dead end, and none is withheld."""
    expected = prefixes(spacegroup, counts)
    by_letter = {site.letter: site for site in sites(spacegroup)}
    assert bool(expected) == (spacegroup in possible_spacegroups(counts))
    for (before, letters), following in expected.items():
        used = [letter for element in (*before, letters) for letter in element]
        found = next_letters(
            spacegroup,
            counts[len(before)] - sum(by_letter[letter].atoms for letter in letters),
            counts[len(before) + 1 :],
            last=letters[-1] if letters else None,
            occupied=frozenset(letter for letter in used if not by_letter[letter].is_free),
        )
        assert set(found) == following, (before, letters)


def test_groups_of_a_composition():
    assert {1, 2, 216, 221, 225} <= set(possible_spacegroups((1, 1)))
    assert 62 not in possible_spacegroups((1, 1))  # every position has four atoms
    assert {194, 227}.isdisjoint(possible_spacegroups((1, 1)))
    assert 62 in possible_spacegroups((4, 4, 4, 16))  # LiFePO4
    assert possible_spacegroups((1, 1)) == tuple(sorted(possible_spacegroups((1, 1))))


def test_every_group_takes_atoms_on_its_general_position():
    for number in range(1, 231):
        general = sites(number)[-1]
        assert number in possible_spacegroups((general.atoms,))
        assert next_letters(number, general.atoms, (), last=None, occupied=frozenset())[-1] == general.letter
