import pandas as pd
from pymatgen.core import Structure

from crystal_jax.evaluate.candidates import COLUMNS, CandidateCifs, candidates, missing_for_a_rank, write_cifs
from crystal_jax.evaluate.columns import COLUMNS as ALL
from tests.energy.conftest import rock_salt


def table(**columns):
    rows = pd.DataFrame(columns)
    return rows.reindex(columns=list(ALL)).astype(ALL | {"valid": "boolean"})


def test_the_lowest_valid_unique_and_new_ones_come_first():
    rows = table(
        name=["no", "known", "twice", "high", "low", "unmeasured"],
        valid=[False, True, True, True, True, True],
        unique=[None, True, False, True, True, True],
        novel=[None, False, True, True, True, True],
        e_above_hull=[-1.0, -1.0, -1.0, 0.3, 0.01, None],
    )
    found = candidates(rows.assign(valid=rows["valid"].astype(bool)))
    assert found["name"].tolist() == ["low", "high", "unmeasured"]
    assert found["rank"].tolist()[:2] == [1, 2]
    assert found["rank"].isna().tolist() == [False, False, True]
    assert tuple(found.columns) == COLUMNS


def test_without_a_training_set_all_unique_ones_are_candidates():
    rows = table(name=["a", "b"], valid=[True, True], unique=[True, True])
    assert candidates(rows.assign(valid=True))["name"].tolist() == ["a", "b"]


def test_each_candidate_has_a_file_and_earlier_ones_are_gone(tmp_path):
    rows = table(name=["a", "b"], valid=[True, True], unique=[True, True], reduced_formula=["NaCl", "K2O"])
    rows["e_above_hull"] = [0.2, 0.1]
    (tmp_path / "00009_old.cif").write_text("")
    write_cifs(
        candidates(rows.assign(valid=True)),
        {"a": CandidateCifs("salt", None), "b": CandidateCifs("oxide", None)},
        tmp_path,
    )
    written = {"00001_K2O.cif": "oxide", "00002_NaCl.cif": "salt"}
    for folder in (tmp_path, tmp_path / "generated"):
        assert {path.name: path.read_text() for path in folder.glob("*.cif")} == written
    assert not list((tmp_path / "p1").iterdir())  # none was relaxed


def test_relaxed_candidates_are_written_in_their_space_group(tmp_path):
    rows = table(name=["a"], valid=[True], unique=[True], reduced_formula=["NaCl"])
    relaxed = rock_salt(5.6).to(fmt="cif")
    assert "'P 1'" in relaxed
    write_cifs(candidates(rows.assign(valid=True)), {"a": CandidateCifs("as sampled", relaxed)}, tmp_path)
    (path,) = tmp_path.glob("*.cif")
    text = path.read_text()
    assert "Fm-3m" in text
    assert "_cell_length_a   5.59999" in text  # the conventional cell
    assert Structure.from_str(text, "cif").composition.formula == "Na4 Cl4"
    assert (tmp_path / "p1" / path.name).read_text() == relaxed
    assert (tmp_path / "generated" / path.name).read_text() == "as sampled"


def ranked(**columns):
    number = len(columns["name"])
    columns = {"valid": [True] * number, "unique": [True] * number, "plausible": [True] * number, **columns}
    return candidates(table(**columns).assign(valid=True))


def test_without_energies_nothing_is_ranked_and_what_is_known_decides():
    found = ranked(name=["p1", "close", "cubic"], spacegroup=[1, 225, 225], plausible=[True, False, True])
    assert found["name"].tolist() == ["cubic", "p1", "close"]
    assert found["rank"].isna().all()
    assert "not ranked: there are no energies" in missing_for_a_rank({})
    assert "not ranked: there is no convex hull" in missing_for_a_rank({"relaxed": {}})
    assert missing_for_a_rank({"relaxed": {}, "metastable": {}}) is None


def test_lower_bounds_come_after_complete_ones_and_symmetric_ones_first_at_equal_energy():
    found = ranked(
        name=["bound", "p1", "cubic", "low"],
        e_above_hull=[-0.3, 0.0201, 0.0204, 0.01],
        lower_bound=[True, False, False, False],
        spacegroup=[225, 1, 225, 1],
    )
    assert found["name"].tolist() == ["low", "cubic", "p1", "bound"]
    assert found["rank"].tolist() == [1, 2, 3, 4]


def test_the_relaxed_crystal_is_what_is_described():
    found = ranked(
        name=["relaxed", "generated"],
        density=[2.0, 3.0],
        spacegroup=[1, 2],
        relaxed_density=[4.0, None],
        relaxed_spacegroup=[225, None],
        relaxed_plausible=[True, None],
        plausible=[False, True],
    ).set_index("name")
    assert found["cell"].to_dict() == {"relaxed": "relaxed", "generated": "generated"}
    assert found["density"].to_dict() == {"relaxed": 4.0, "generated": 3.0}
    assert found["spacegroup"].to_dict() == {"relaxed": 225, "generated": 2}
    assert found["generated_density"].to_dict() == {"relaxed": 2.0, "generated": 3.0}
    assert bool(found.loc["relaxed", "plausible"])


def test_a_known_formula_is_not_new():
    found = ranked(name=["a", "b", "c"], novel=[True, True, None], known_formula=[True, False, None])
    assert found.set_index("name")["new"].astype(object).where(
        found.set_index("name")["new"].notna(), None
    ).to_dict() == {
        "a": False,
        "b": True,
        "c": None,
    }


def test_lower_bounds_are_ranked_by_what_the_hull_lacks():
    """A height above a hull of the elements alone is very low, and says nothing."""
    found = ranked(
        name=["elements only", "half", "nearly complete", "complete"],
        e_above_hull=[-4.0, -0.5, 0.05, 0.2],
        lower_bound=[True, True, True, False],
        stable_in_system=[7, 8, 8, 4],
        stable_missing=[7, 4, 1, 0],
        known_in_system=[0, 1, 1, 1],
    )
    assert found["name"].tolist() == ["complete", "nearly complete", "half", "elements only"]


def test_elements_come_after_compounds():
    found = ranked(name=["hydrogen", "salt"], reduced_formula=["H2", "NaCl"], e_above_hull=[-0.07, 0.02])
    assert found["name"].tolist() == ["salt", "hydrogen"]
