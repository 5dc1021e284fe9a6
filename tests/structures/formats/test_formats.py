"""POSCAR, JSON, extended XYZ, and dictionaries in tables."""

import json

import ase.io
import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from crystal_jax.errors import UserError
from crystal_jax.structures import parse, read_entries


def same(entry, structure):
    found = parse(entry).structure
    return found.matches(structure) and found.formula == structure.formula


@pytest.mark.parametrize("name", ["POSCAR", "CONTCAR_2", "salt.vasp", "salt.POSCAR"])
def test_poscar(tmp_path, salt, name):
    (tmp_path / name).write_text(salt.to(fmt="poscar"))
    (entry,) = read_entries(tmp_path / name)
    assert same(entry, salt)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("4 4\n", "4 99999999999999\n"), "it claims 100000000000003 atoms and has 16 lines"),
        (("Na Cl\n", "Qq Zz\n"), "not a readable POSCAR"),
        (("5.6400000000000006", "nan"), "forms no cell"),
        (("direct", "something"), ""),
    ],
)
def test_a_poscar_without_a_crystal_says_why(tmp_path, salt, change, reason):
    text = salt.to(fmt="poscar").replace("5.6399999999999997", "5.6400000000000006")
    assert change[0] in text
    (tmp_path / "x.vasp").write_text(text.replace(*change, 1))
    (entry,) = read_entries(tmp_path / "x.vasp")
    sample = parse(entry)
    assert reason in (sample.failure or "")
    assert sample.structure is None or change[0] == "direct"


def test_elements_that_a_poscar_does_not_name_are_not_invented(tmp_path):
    (tmp_path / "x.vasp").write_text("salt?\n1.0\n5 0 0\n0 5 0\n0 0 5\n1 1\ndirect\n0 0 0\n0.5 0.5 0.5\n")
    assert "Elements in POSCAR cannot be determined" in parse(read_entries(tmp_path / "x.vasp")[0]).failure


def test_structures_in_json(tmp_path, salt, cesium_chloride):
    ions = salt.copy()
    ions.add_oxidation_state_by_element({"Na": 1, "Cl": -1})
    for name, content in {
        "one": ions.as_dict(),
        "list": [salt.as_dict(), {"structure": ions.as_dict(), "entry_id": "mp-1"}],
        "named": {"a": salt.as_dict(), "b": {"structure": ions.as_dict()}},
        "under": {"structures": [salt.as_dict()]},
    }.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        entries = read_entries(tmp_path / f"{name}.json")
        assert all(same(entry, salt) for entry in entries)
        expected = {"one": ["one"], "list": ["000000", "000001"], "named": ["a", "b"], "under": ["under"]}[name]
        assert [entry.name for entry in entries] == expected
    without = cesium_chloride.as_dict()
    for site in without["sites"]:
        del site["abc"]
    (tmp_path / "xyz.json").write_text(json.dumps(without))
    assert same(read_entries(tmp_path / "xyz.json")[0], cesium_chloride)


def test_json_names_no_code(tmp_path, monkeypatch, salt):
    import importlib

    from monty.json import MontyDecoder

    def refuse(*args, **kwargs):
        raise AssertionError("a class was looked for")

    monkeypatch.setattr(MontyDecoder, "process_decoded", refuse)
    monkeypatch.setattr(importlib, "import_module", refuse)
    content = salt.as_dict() | {"@module": "os", "@class": "system", "properties": {"@module": "os", "@class": "kill"}}
    (tmp_path / "x.json").write_text(json.dumps(content))
    assert parse(read_entries(tmp_path / "x.json")[0]).structure.formula == "Na4 Cl4"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"lattice": 1}, "not a readable pymatgen structure"),
        ({"lattice": {"matrix": [[1, 2], [3]]}}, "not a readable pymatgen structure"),
        ({"lattice": {"matrix": [[float("nan")] * 3] * 3}}, "forms no cell"),
        ({"sites": []}, "it has no atoms"),
        ({"sites": [{"species": [{"element": "Na", "occu": 0.5}], "abc": [0, 0, 0]}]}, "disordered"),
        ({"sites": [{"species": [{"element": "Xx", "occu": 1}], "abc": [0, 0, 0]}]}, "Xx is no element"),
        ({"sites": [{"species": [{"element": "Na", "occu": 1}], "abc": [0, 0, None]}]}, "not finite|not a readable"),
        ({"sites": [{"abc": [0, 0, 0]}]}, "it has no 'species'"),
        ({"sites": "many"}, "not a readable pymatgen structure"),
        ({"sites": [{"species": ["Na"], "abc": [0, 0, 0]}]}, "not a readable pymatgen structure"),
    ],
)
def test_a_structure_that_is_none_says_why(tmp_path, salt, change, reason):
    (tmp_path / "x.json").write_text(json.dumps([salt.as_dict(), salt.as_dict() | change]))
    first, second = map(parse, read_entries(tmp_path / "x.json"))
    assert first.failure is None
    assert any(each in second.failure for each in reason.split("|"))


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, "1", "[]", "{}", '{"a": 1}', '["x"]'])
def test_json_without_structures_is_refused(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UserError, match=r"x\.json: ") as error:
        read_entries(tmp_path / "x.json")
    assert "\n" not in str(error.value)


def test_dictionaries_in_a_table(tmp_path, salt):
    cells = [json.dumps(salt.as_dict()), str(salt.as_dict()), "{oops", salt.to(fmt="cif")]
    rows = "".join('"' + cell.replace('"', '""') + '"\n' for cell in cells)
    (tmp_path / "x.csv").write_text("cif\n" + rows)
    samples = [parse(entry) for entry in read_entries(tmp_path / "x.csv")]
    assert [sample.failure for sample in samples] == [None, None, "the cell holds a dictionary that is no JSON", None]
    assert all(sample.structure.matches(salt) for sample in samples if sample.structure)


FRAME = '2\nLattice="0 2 2 2 0 2 2 2 0" Properties=species:S:1:pos:R:3 pbc="T T T"\nLi 0 0 0\n{} 2 2 2\n'


def test_deuterium_and_a_byte_order_mark_in_extended_xyz(tmp_path):
    (tmp_path / "d.extxyz").write_text("\ufeff" + FRAME.format("D") + FRAME.format("h"), encoding="utf-8")
    assert [parse(entry).structure.formula for entry in read_entries(tmp_path / "d.extxyz")] == ["Li1 H1"] * 2


def test_other_columns_may_come_first(tmp_path):
    text = FRAME.replace("species:S:1:pos:R:3", "tags:I:2:species:S:1:pos:R:3").replace("Li 0", "1 2 Li 0")
    (tmp_path / "x.xyz").write_text(text.format("3 4 D").replace("3 4 D 2", "3 4 D 2"))
    assert parse(read_entries(tmp_path / "x.xyz")[0]).structure.formula == "Li1 H1"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (FRAME.format("Qq"), "line 4 has the unknown element 'Qq'"),
        (FRAME.format("H").replace("2\n", "100000000000000\n", 1), "line 1 claims 100000000000000 atoms"),
        (FRAME.format("H").replace("2\n", "-1\n", 1), "line 1 claims -1 atoms"),
        (FRAME.format("H") + "\n" + FRAME.format("H"), "line 6 follows a blank line"),
        (FRAME.format("H").replace("pos:R:3", "pos:R:999999999"), "has the properties"),
        (FRAME.format("H").replace("Li 0 0 0", "Li 0 0"), "line 3 has 3 columns, not 4"),
        ("", "it has no frames"),
        ("\n", "it has no frames"),
    ],
)
def test_what_is_wrong_with_extended_xyz_is_said(tmp_path, text, reason):
    (tmp_path / "x.extxyz").write_text(text)
    with pytest.raises(UserError) as error:
        read_entries(tmp_path / "x.extxyz")
    assert reason in str(error.value)


def test_a_flat_cell_has_no_cif(tmp_path):
    flat = FRAME.format("H").replace("0 2 2 2 0 2 2 2 0", "4 0 0 0 4 0 4 4 0")
    (tmp_path / "x.extxyz").write_text(flat + FRAME.format("H").replace("T T T", "T T F"))
    first, second = read_entries(tmp_path / "x.extxyz")
    assert (first.formula, second.formula) == ("Li1 H1", "Li1 H1")
    assert "not periodic" in parse(second).failure
    assert "forms no cell" in parse(first).failure


def test_text_that_is_not_utf8_is_read(tmp_path, salt):
    cif = salt.to(fmt="cif")
    (tmp_path / "latin.cif").write_bytes(f"# caf\xe9\n{cif}".encode("latin1"))
    (tmp_path / "wide.cif").write_text(cif, encoding="utf-16")
    assert [parse(entry).structure.formula for entry in read_entries(tmp_path)] == ["Na4 Cl4"] * 2


def test_a_skewed_cell_survives_every_format(tmp_path):
    rng = np.random.default_rng(0)
    structure = Structure(Lattice(4 * np.eye(3) + rng.normal(scale=0.3, size=(3, 3))), ["Li", "O"], rng.random((2, 3)))
    (tmp_path / "a.json").write_text(json.dumps(structure.as_dict()))
    (tmp_path / "b.vasp").write_text(structure.to(fmt="poscar"))
    ase.io.write(tmp_path / "c.extxyz", structure.to_ase_atoms())
    for entry in read_entries(tmp_path):
        found = parse(entry).structure
        np.testing.assert_allclose(found.lattice.parameters, structure.lattice.parameters, atol=1e-6)
        np.testing.assert_allclose(found.distance_matrix, structure.distance_matrix, atol=1e-6)


def test_extended_xyz(tmp_path, salt, cesium_chloride):
    frames = [structure.to_ase_atoms() for structure in (salt, cesium_chloride)]
    molecule = frames[0].copy()
    molecule.set_pbc(False)
    ase.io.write(tmp_path / "some.extxyz", [*frames, molecule])
    first, second, third = read_entries(tmp_path / "some.extxyz")
    assert same(first, salt)
    assert same(second, cesium_chloride)
    assert (third.name, third.cif, third.formula) == ("000002", "", "Na4 Cl4")
    frames[0].info["name"], frames[1].info["name"] = "salt", "other"
    ase.io.write(tmp_path / "some.xyz", frames)
    assert [entry.name for entry in read_entries(tmp_path / "some.xyz")] == ["salt", "other"]
