import functools
import itertools

import numpy as np
import pytest
from pymatgen.core import Composition

from crystal_jax.evaluate.chemistry.oxidation import load_oxidation_table
from crystal_jax.evaluate.chemistry.validity import compositional_invalid_reason
from crystal_jax.sample.constraints import charge
from crystal_jax.sample.constraints.charge import ChargeBalance
from crystal_jax.text.crystal_text import ELEMENTS
from crystal_jax.text.grammar.automaton import END

TABLE = load_oxidation_table()
VALUES = (*sorted(ELEMENTS), END)


def fields(symbols):
    return ["5.0"] * 3 + ["90"] * 3 + [text for symbol in symbols for text in (symbol, "0.00", "0.00", "0.00")]


def opened(guide, symbols):
    """What the guide leaves open after these atoms."""
    return {value for value, is_open in zip(VALUES, guide(fields(symbols)).open["element"], strict=True) if is_open}


def is_valid(counts):
    """By the evaluator."""
    return compositional_invalid_reason(Composition(counts), TABLE) is None


@pytest.mark.parametrize(
    "elements",
    [
        ("Na", "Fe", "O", "Cl"),
        ("Li", "Fe", "P", "O"),
        ("Cu", "Zn", "S"),  # metals may be alloys
        ("Al", "N", "F"),  # three of the same side
        ("He", "Na", "Cl"),  # no states
        ("Fe", "S", "Se", "Te"),  # several states each
    ],
)
@pytest.mark.parametrize("atoms", [(1, 5), (4, 5)], ids=str)
def test_open_elements_are_those_with_a_valid_completion(elements, atoms):
    """Against brute force: every multiset of atoms, and every one that it can grow to."""
    least, most = atoms
    guide = ChargeBalance(TABLE, VALUES, elements=elements, min_atoms=least, max_atoms=most)

    @functools.cache
    def completes(symbols):
        ends = len(symbols) >= least and is_valid({s: symbols.count(s) for s in symbols})
        return ends or (len(symbols) < most and any(completes(tuple(sorted((*symbols, e)))) for e in elements))

    for size in range(most + 1):
        for symbols in itertools.combinations_with_replacement(sorted(elements), size):
            expected = {e for e in elements if size < most and completes(tuple(sorted((*symbols, e))))}
            if size >= least and is_valid({s: symbols.count(s) for s in symbols}):
                expected.add(END)
            assert opened(guide, symbols) == expected, symbols


def test_every_way_that_the_guide_leaves_open_ends_in_a_valid_composition():
    guide = ChargeBalance(TABLE, VALUES, elements=ELEMENTS, max_atoms=20)
    rng = np.random.default_rng(0)
    for _ in range(20):
        symbols = []
        while (value := rng.choice(sorted(opened(guide, symbols)))) != END or not symbols:
            symbols.append(str(value))
            assert len(symbols) <= 20
        assert is_valid({s: symbols.count(s) for s in symbols}), symbols


@pytest.mark.parametrize(("least", "most"), [(1, 3), (1, 9), (12, 16), (1, 20)])
def test_what_is_open_does_not_depend_on_how_short_the_sums_are_kept(monkeypatch, least, most):
    """Sums of all atoms that a cell may have, as in the formula, against shorter ones, for random compositions."""
    rng = np.random.default_rng(most)
    elements = [str(e) for e in rng.choice(sorted(ELEMENTS), 30, replace=False)]
    guide = ChargeBalance(TABLE, VALUES, elements=elements, min_atoms=least, max_atoms=most)
    whole = ChargeBalance(TABLE, VALUES, elements=elements, min_atoms=least, max_atoms=most)
    for _ in range(15):
        symbols = [str(e) for e in rng.choice(elements[:12], rng.integers(most + 1))]
        monkeypatch.setattr(charge, "_FURTHER", (1, 2, 4, 8))
        found = opened(guide, symbols)
        monkeypatch.setattr(charge, "_FURTHER", ())
        assert found == opened(whole, symbols), symbols


def test_it_must_be_asked_again_after_the_next_element():
    guide = ChargeBalance(TABLE, VALUES, elements=ELEMENTS)
    assert [guide(fields(["Na"] * n)).until for n in range(3)] == [10, 14, 18]
