import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystal_jax.report.figures import Frame, histogram, ticks, training_curve


@given(low=st.floats(-1e3, 1e3), span=st.floats(1e-3, 1e4))
def test_ticks_are_few_round_and_inside(low, span):
    values = ticks(low, low + span)
    assert len(values) <= 6
    assert all(low - 1e-6 * span <= value <= low + span * (1 + 1e-6) for value in values)


def test_ticks_by_hand():
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert ticks(3, 3) == [3]


def test_bars_are_as_high_as_their_shares():
    data = {
        "label": "Atoms",
        "unit": "atoms",
        "edges": [0.5, 1.5, 2.5],
        "samples": [1, 3],
        "reference": [5, 5],
    }
    svg = ElementTree.fromstring(str(histogram(data)))
    low, high = (float(bar.get("height")) for bar in svg.iter("rect"))
    assert high == pytest.approx(3 * low, abs=0.2)
    assert [title.text for title in svg.iter("title")] == ["1: 1 samples", "2: 3 samples"]
    assert sum("reference" in path.get("class") for path in svg.iter("path")) == 1


def test_a_histogram_without_reference_has_no_outline():
    data = {"label": "Atoms", "unit": "atoms", "edges": [0.5, 1.5], "samples": [4], "reference": [0]}
    assert "reference" not in str(histogram(data))


def test_labels_are_escaped():
    frame = Frame((0, 1), (0, 1))
    frame.text(0, 0, "<script>", "start")
    assert "<script>" not in frame.svg("a & b")


def test_a_single_point_is_a_curve():
    ElementTree.fromstring(str(training_curve({"loss": [(5, 1.0)], "val_loss": []})))
