import pytest

from crystal_jax.evaluate.chemistry import symmetry
from crystal_jax.structures import Entry, parse


def test_counts_of_the_commonest():
    found = symmetry.comparison([225, 225, 62, None], [62, 62, 62, 14])
    assert found == {
        "numbers": [62, 225, 14],
        "samples": [1, 2, 0],
        "reference": [3, 0, 1],
        "sizes": {"samples": 3, "reference": 4},
        "p1": {"samples": 0, "reference": 0},
    }
    assert symmetry.comparison([1, 1, 62], [62, 1])["p1"] == {"samples": 2, "reference": 1}
    assert symmetry.comparison([], [])["numbers"] == []


def test_groups_are_found_once(salt, cesium_chloride, monkeypatch):
    texts = [salt.to(fmt="cif"), "", cesium_chloride.to(fmt="cif"), salt.to(fmt="cif")]
    samples = [parse(Entry(str(i), text)) for i, text in enumerate(texts)]
    assert symmetry.spacegroups(samples) == [225, 221, 225]
    monkeypatch.setattr(symmetry, "_of_text", lambda cif: pytest.fail("computed again"))
    assert symmetry.spacegroups(samples) == [225, 221, 225]
