import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystal_jax.evaluate.metrics.distributions import MAX_BINS, PROPERTIES, histogram, wasserstein

NUMBERS = st.lists(st.floats(0, 30), min_size=1, max_size=50).map(pd.Series)
DENSITY, NUM_ELEMENTS, NUM_ATOMS = PROPERTIES


def test_wasserstein_by_hand():
    """Half of the mass moves by 2, the other half stays."""
    result = wasserstein(pd.Series([1.0, 3.0]), pd.Series([1.0, 5.0, 1.0, 5.0]), "elements")
    assert result == {"value": pytest.approx(1.0), "unit": "elements", "samples": 2, "reference": 4}


@given(values=NUMBERS, shift=st.floats(0, 10))
def test_wasserstein_of_a_shift_is_the_shift(values, shift):
    assert wasserstein(values, values + shift, "")["value"] == pytest.approx(shift, abs=1e-9)


def test_wasserstein_of_nothing_has_no_value():
    assert wasserstein(pd.Series([], dtype=float), pd.Series([1.0]), "")["value"] is None


@given(samples=NUMBERS, reference=NUMBERS)
def test_a_histogram_counts_everything(samples, reference):
    result = histogram(samples, reference, DENSITY)
    assert (sum(result["samples"]), sum(result["reference"])) == (len(samples), len(reference))
    assert len(result["edges"]) == len(result["samples"]) + 1 <= MAX_BINS + 1


def test_whole_numbers_have_bins_of_their_own():
    result = histogram(pd.Series([1, 2, 2, 9]), pd.Series([1, 2, 3]), NUM_ELEMENTS)
    assert result["edges"] == [0.5, 1.5, 2.5, 3.5]
    assert result["samples"] == [1, 2, 1]  # the 9 lies beyond the reference
    assert result["reference"] == [1, 1, 1]


def test_wide_ranges_of_whole_numbers_share_bins():
    result = histogram(pd.Series(np.arange(1, 201)), pd.Series([], dtype=float), NUM_ATOMS)
    assert len(result["samples"]) <= MAX_BINS
    assert sum(result["samples"]) == 200
