"""Requests from files and from Python."""

import pytest

from crystal_jax.errors import UserError
from crystal_jax.sample.requests import conditions_of, parse_request, read_requests


def test_the_formula_comes_first_whatever_the_columns_are(tmp_path):
    """As in training; CDVAE's tables have it after the energies."""
    path = tmp_path / "test.csv"
    path.write_text("material_id,band_gap,pretty_formula,spacegroup.number\nmp-1,0.5,NaCl,225.0\nmp-2,,KF,Pnma\n")
    first, second = read_requests(path)
    assert list(conditions_of(first)) == ["pretty_formula", "band_gap", "spacegroup.number"]
    assert first == {"band_gap": 0.5, "pretty_formula": "NaCl", "spacegroup.number": 225, "name": "mp-1"}
    assert second == {"pretty_formula": "KF", "spacegroup.number": 62, "name": "mp-2"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("LiFoo2,,", "row 1: 'LiFoo2' is not a chemical formula"),
        ("NaCl,Xyz,", "row 1: there is no space group 'Xyz'"),
        ("NaCl,,x", "row 1: min_atoms: 'x' is not a finite number"),
        ("NaCl,,1.5", "row 1: min_atoms: '1.5' is not a whole number"),
        ("NaCl,,-1", "row 1: min_atoms: '-1' is not a whole number from 1 up"),
        ("NaCl,,nan", "row 1: min_atoms: 'nan' is not a finite number"),
        ("NaCl,,1,7", "row 1 has more cells than the header"),
    ],
)
def test_a_bad_line_is_named(tmp_path, row, message):
    path = tmp_path / "requests.csv"
    path.write_text(f"pretty_formula,spacegroup.number,min_atoms\n{row}\n")
    with pytest.raises(UserError, match=message):
        read_requests(path)


def test_lists_are_written_in_several_ways():
    for text in ("Li Fe O", "Li,Fe,O", "['Li', 'Fe', 'O']"):
        assert parse_request({"elements": text})["elements"] == ("Li", "Fe", "O")
    assert parse_request({"chemical_system": "Li-Fe-O"})["chemical_system"] == ("Li", "Fe", "O")
    assert parse_request({"constraints": "none"})["constraints"] == []
    assert parse_request({"band_gap": None}) == {}
    with pytest.raises(UserError, match="chemical_system"):
        parse_request({"chemical_system": 5})
