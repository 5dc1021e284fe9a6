import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Composition, Element

from crystal_jax.evaluate.fingerprints.magpie import (
    LENGTH,
    STATISTICS,
    _properties,
    composition_fingerprints,
    raw_fingerprints,
)
from tests.evaluate.golden_values import golden_compositions


def amounts(formula):
    return Composition(formula).get_el_amt_dict()


def straight(composition):
    """One property after the other, as the definition reads."""
    table, rows = _properties()
    values = np.array([table[rows[symbol]] for symbol in composition])
    shares = np.array(list(composition.values())) / sum(composition.values())
    found = []
    for x in values.T:
        mean = sum(share * value for share, value in zip(shares, x, strict=True))
        deviation = sum(share * abs(value - mean) for share, value in zip(shares, x, strict=True))
        mode = min(value for value, share in zip(x, shares, strict=True) if np.isclose(share, shares.max()))
        if np.isnan(x).any():
            found += [np.nan] * 5 + [mode]
        else:
            found += [min(x), max(x), max(x) - min(x), mean, deviation, mode]
    return np.array(found)


def test_equals_matminer():
    formulas, expected = zip(*golden_compositions(), strict=True)
    np.testing.assert_allclose(raw_fingerprints([amounts(f) for f in formulas]), expected, rtol=1e-12, atol=1e-9)


@settings(max_examples=30)
@given(atoms=st.dictionaries(st.integers(3, 80), st.integers(1, 9), min_size=1, max_size=5))
def test_equals_the_definition(atoms):
    composition = {Element.from_Z(z).symbol: float(n) for z, n in atoms.items()}
    found, expected = raw_fingerprints([composition])[0], straight(composition)
    known = ~np.isnan(expected)
    np.testing.assert_allclose(found[known], expected[known], rtol=1e-12, atol=1e-9)


def test_the_order_and_the_unit_of_amounts_do_not_matter():
    rows = composition_fingerprints([amounts("Fe2O3"), {"O": 0.6, "Fe": 0.4}, {"Fe": 4, "O": 6}])
    assert rows.shape == (3, LENGTH) == (3, 22 * len(STATISTICS))
    np.testing.assert_allclose(rows[1:], rows[[0, 0]], atol=1e-12)


def test_what_is_not_known_is_the_mean():
    """Argon's electronegativity; properties 42 to 47 are the six statistics of it."""
    assert np.isnan(raw_fingerprints([amounts("ArLi")])[0, 42:47]).all()
    assert composition_fingerprints([amounts("ArLi")])[0, 42:47].tolist() == [0] * 5


def test_nothing_in_nothing_out():
    assert composition_fingerprints([]).shape == (0, LENGTH)


def test_unknown_elements():
    with pytest.raises(KeyError):
        composition_fingerprints([{"Xx": 1.0}])
