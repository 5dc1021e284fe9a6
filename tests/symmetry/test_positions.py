"""The table of Wyckoff positions: against its derivation, the operations, and pyxtal's table."""

import ast
import csv
import re

import numpy as np
import pytest

from crystal_jax.errors import UserError
from crystal_jax.storage.wheel_files import WheelFiles
from crystal_jax.symmetry.derive_positions import positions_of
from crystal_jax.symmetry.operations import NUM_GROUPS, standard_operations
from crystal_jax.symmetry.positions import position, positions

POINT = (0.1234, 0.3471, 0.0873)
PYXTAL = WheelFiles(
    "pyxtal's table",
    "pyxtal==1.1.5",
    "2 MB",
    "pyxtal/database",
    {"wyckoff_list.csv": "ca56602252b7896121253c910739ef2fccf0ba947f2940358feb941f30c5e13d"},
)


def test_there_are_1731_positions():
    assert sum(len(positions(number)) for number in range(1, NUM_GROUPS + 1)) == 1731
    assert "".join(each.letter for each in positions(47)) == "abcdefghijklmnopqrstuvwxyzA"


@pytest.mark.parametrize(
    ("spacegroup", "letter", "multiplicity", "coordinates"),
    [
        (1, "a", 1, "x,y,z"),
        (14, "e", 4, "x,y,z"),
        (62, "c", 4, "x,1/4,z"),
        (139, "e", 4, "0,0,z"),
        (166, "c", 6, "0,0,z"),
        (194, "c", 2, "1/3,2/3,1/4"),
        (225, "c", 8, "1/4,1/4,1/4"),
        (227, "e", 32, "x,x,x"),
    ],
)
def test_positions_of_the_international_tables(spacegroup, letter, multiplicity, coordinates):
    found = position(spacegroup, letter)
    assert (found.multiplicity, found.coordinates) == (multiplicity, coordinates)


@pytest.mark.parametrize("spacegroup", range(1, NUM_GROUPS + 1))
def test_points_are_the_orbit_under_the_operations(spacegroup):
    operations = standard_operations(spacegroup)
    total = 0
    for each in positions(spacegroup):
        points = each.points(POINT[: each.num_free])
        assert len(points) == len(operations.orbit(points[0])) == each.multiplicity
        found = each.parameters(points)
        assert any(np.allclose(row, POINT[: each.num_free]) for row in found)
        # Each set of parameters stands for the same points.
        for row in found:
            again = each.points(row)
            apart = again[:, None] - points[None]
            assert (np.abs(apart - np.round(apart)) < 1e-6).all(axis=-1).any(axis=1).all()
        total += each.multiplicity == len(operations.rotations)
    assert total == 1  # the general position, and no other, is as large as the group
    assert positions(spacegroup)[-1].coordinates == "x,y,z"


@pytest.mark.parametrize("spacegroup", [2, 15, 70, 152, 194, 216])
def test_the_table_is_the_derived_one(spacegroup):
    derived = positions_of(spacegroup)
    assert derived == [(spacegroup, p.letter, p.multiplicity, p.coordinates) for p in positions(spacegroup)]


def test_all_positions_are_pyxtals(tmp_path, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX", raising=False)
    try:
        PYXTAL.fetch(tmp_path / "table", "no matter")
    except UserError as error:
        pytest.skip(str(error))
    csv.field_size_limit(1 << 20)
    with (tmp_path / "table" / "wyckoff_list.csv").open() as file:
        listed = {int(row[0]): ast.literal_eval(row[1])[::-1] for row in csv.reader(file) if row[0] not in ("", "0")}
    assert sorted(listed) == list(range(1, NUM_GROUPS + 1))
    for spacegroup, theirs in listed.items():
        for texts, ours in zip(theirs, positions(spacegroup), strict=True):
            points = np.array([evaluated(text) for text in texts])
            assert len(points) == ours.multiplicity
            assert len(ours.parameters(points)), (spacegroup, ours.letter)


def evaluated(coordinates):
    """Returns the point of coordinates such as "x, -x, 2x+1/4"."""
    point = []
    for text in coordinates.split(","):
        value = 0.0
        for sign, factor, name, number, divisor in re.findall(r"([+-]?)(?:(\d*)([xyz])|(\d+)(?:/(\d+))?)", text):
            size = int(factor or 1) * POINT["xyz".index(name)] if name else int(number) / int(divisor or 1)
            value += -size if sign == "-" else size
        point.append(value)
    return point


def test_wrong_numbers_and_letters_are_named():
    with pytest.raises(ValueError, match="1 to 230, not 231"):
        positions(231)
    with pytest.raises(ValueError, match="space group 62 has the Wyckoff positions abcd, not 'z'"):
        position(62, "z")
