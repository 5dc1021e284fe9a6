"""The list of known formulas, and how complete a hull is by it."""

import gzip
import json

import pytest

from crystal_jax.energy.convex_hull.hull import Hull
from crystal_jax.energy.convex_hull.known_materials import (
    FILE,
    KnownCrystal,
    KnownMaterials,
    load_known_materials,
    read_known_materials,
    reduced,
)
from crystal_jax.errors import UserError
from crystal_jax.evaluate.metrics.stability import completeness

LI_P_S = {"Li3PS4": 0.0, "Li2S": 0.0, "LiP": 0.0, "P2S5": 0.0, "Li7PS6": 0.01, "Li3P": 0.0}


@pytest.fixture
def known():
    return materials(LI_P_S)


def materials(heights):
    """Returns a list of one crystal a formula, of these energies above the hull."""
    return KnownMaterials({formula: [KnownCrystal(above, 1)] for formula, above in heights.items()}, "a list")


def hull_of(*formulas):
    counts = [dict(reduced({"Li": 0, **amounts})) for amounts in formulas]
    return Hull([(each, -1.0) for each in counts], {"Li": -1.9, "P": -5.4, "S": -4.1}, "a hull")


def test_formulas_and_stable_phases(known):
    assert len(known) == 6
    assert known.has(reduced({"Li": 6, "P": 2, "S": 8}))
    assert not known.has(reduced({"Li": 1, "P": 1, "S": 1}))
    assert set(known.stable_in(["Li", "P"])) == {reduced({"Li": 1, "P": 1}), reduced({"Li": 3, "P": 1})}
    assert len(known.stable_in(["Li", "P", "S"])) == 5  # Li7PS6 is not stable


def test_a_hull_with_one_ternary_of_a_system_gives_a_lower_bound(known):
    """The false discovery that was shown as a true one: Li3PS4 below a hull that lacks the competing phases."""
    poor = hull_of({"Li": 3, "P": 1, "S": 4})
    assert completeness({"Li": 3, "P": 1, "S": 4}, poor, known) == {
        "stable_in_system": 5,
        "stable_missing": 4,
        "lower_bound": True,
    }
    assert completeness({"Li": 3, "P": 1, "S": 4}, poor, None) == {"lower_bound": True}
    rich = hull_of({"Li": 3, "P": 1, "S": 4}, {"Li": 2, "S": 1}, {"Li": 1, "P": 1}, {"P": 2, "S": 5}, {"Li": 3, "P": 1})
    assert completeness({"Li": 3, "P": 1, "S": 4}, rich, known)["lower_bound"] is False
    assert completeness({"Li": 1}, poor, known) == {"lower_bound": False}


def test_nine_of_ten_are_enough():
    ten = {f"LiP{n}": 0.0 for n in range(1, 11)}
    hull = hull_of(*({"Li": 1, "P": n} for n in range(1, 10)))
    assert completeness({"Li": 1, "P": 1}, hull, materials(ten))["lower_bound"] is False


def test_a_system_of_which_nothing_is_known_may_hold_anything(known):
    assert completeness({"Na": 1, "Cl": 1}, hull_of(), known)["lower_bound"] is True


def test_reads_the_list(tmp_path):
    content = {
        "Li3PS4": [[0.0, ["Pnma", 62]], [0.0074, ["I-42m", 121]]],
        "Li7PS6": [[0.01, ["F-43m", 216]]],
        "Li8PS9": [],
    }
    path = tmp_path / FILE
    path.write_bytes(gzip.compress(json.dumps(content).encode()))
    found = read_known_materials(path)
    formula = reduced({"Li": 3, "P": 1, "S": 4})
    assert len(found) == 3
    assert found.stable_in(["Li", "P", "S"]) == [formula] == list(found.stable())
    assert found.stable_spacegroups(formula) == [62]
    assert found.has_crystal(formula, 121)
    assert not found.has_crystal(formula, 14)
    assert not found.has_crystal(reduced({"Li": 8, "P": 1, "S": 9}), 62)


@pytest.mark.parametrize("content", [b"not gzip", gzip.compress(b"[1]"), gzip.compress(b'{"Li": [[0.0]]}')])
def test_a_damaged_list_is_named(tmp_path, content):
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(UserError, match=r"json\.gz is no list of known crystals"):
        read_known_materials(tmp_path / FILE)


def test_the_list_is_fetched_where_it_is_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CRYSTAL_JAX_CACHE", str(tmp_path))
    assert load_known_materials(fetch=False) is None
    assert capsys.readouterr().err == ""
    assert load_known_materials(fetch=True) is None  # tests have no network
    assert "the Materials Project's formulas cannot be fetched" in capsys.readouterr().err
    (tmp_path / "dara-xrd").mkdir()
    with pytest.raises(UserError, match=r"is missing; delete the folder .* to fetch it again"):
        load_known_materials(fetch=False)


def test_the_real_list(tmp_path, monkeypatch):
    monkeypatch.setenv("CRYSTAL_JAX_CACHE", str(tmp_path))
    monkeypatch.delenv("PIP_NO_INDEX")
    found = load_known_materials(fetch=True)
    if found is None:
        pytest.skip("dara-xrd cannot be fetched")
    assert len(found) > 100_000
    assert reduced({"Li": 1, "Fe": 1, "P": 1, "O": 4}) in found.stable_in(["Li", "Fe", "P", "O"])
    assert found.has_crystal(reduced({"Na": 1, "Cl": 1}), 225)
