"""What a constraint allows next can always be completed, and what it forbids never could: against enumeration."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystal_jax.text.grammar.composition_constraint import CompositionConstraint
from crystal_jax.text.layout import in_order

SYMBOLS = ("Li", "Fe", "P", "O")


def every_composition(constraint, parts=()):
    """All compositions that may be written, and a failure where one cannot be completed."""
    if constraint.is_met(parts) and parts:
        yield parts
    followed = False
    for symbol in constraint.next_elements(parts):
        for number in constraint.next_counts(parts, symbol):
            followed = True
            yield from every_composition(constraint, (*parts, (symbol, number)))
    assert followed or constraint.is_met(parts), f"{parts} is a dead end"


def expected(*, elements, required, min_elements, max_elements, min_atoms, max_atoms):
    for counts in itertools.product(range(max_atoms + 1), repeat=len(elements)):
        present = {symbol: n for symbol, n in zip(elements, counts, strict=True) if n}
        fits = min_atoms <= sum(counts) <= max_atoms and min_elements <= len(present) <= max_elements
        if fits and set(required) <= set(present):
            yield tuple((symbol, present[symbol]) for symbol in in_order(present))


@settings(max_examples=150)
@given(
    elements=st.lists(st.sampled_from(SYMBOLS), min_size=1, max_size=4, unique=True),
    required=st.lists(st.sampled_from(SYMBOLS), max_size=3, unique=True),
    min_elements=st.integers(1, 4),
    max_elements=st.integers(1, 4),
    min_atoms=st.integers(1, 5),
    max_atoms=st.integers(1, 5),
)
def test_exact(**limits):
    limits["required"] = [symbol for symbol in limits["required"] if symbol in limits["elements"]]
    wanted = set(expected(**limits))
    if not wanted:
        with pytest.raises(ValueError, match=r"."):
            CompositionConstraint(**limits)
        return
    found = list(every_composition(CompositionConstraint(**limits)))
    assert len(found) == len(set(found))
    assert set(found) == wanted


def test_a_formula_is_one_of_its_multiples():
    constraint = CompositionConstraint(formula="Fe2O3", min_atoms=6, max_atoms=16)
    assert set(every_composition(constraint)) == {(("Fe", 2 * k), ("O", 3 * k)) for k in (2, 3)}


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"formula": "LiFePO4", "elements": ("Li", "O")}, "LiFePO4 has Fe, P, which the allowed elements leave out"),
        ({"formula": "Li2O", "required": ("S",)}, "Li2O has no S, which the chemical system requires"),
        ({"formula": "Li2O", "min_elements": 3}, "Li2O has 2 elements, not 3 to 10"),
        ({"formula": "LiFePO4", "max_atoms": 6}, r"no multiple of LiFePO4 \(7 atoms\) has 1 to 6 atoms"),
        ({"elements": ("Li",), "min_elements": 2}, "min_elements=2, and only 1 elements may occur"),
        ({"required": ("Xx",)}, "Not elements: Xx"),
    ],
)
def test_what_no_composition_fulfils(limits, message):
    with pytest.raises(ValueError, match=message):
        CompositionConstraint(**limits)
