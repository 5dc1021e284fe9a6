"""What users write: formulas, space groups, elements, chemical systems."""

import pytest
from pymatgen.symmetry.groups import sg_symbol_from_int_number

from crystal_jax.text.conditions import (
    parse_chemical_system,
    parse_elements,
    parse_formula,
    parse_spacegroup,
)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("62", 62),
        (62, 62),
        ("Pnma", 62),
        ("P n m a", 62),
        ("P21/c", 14),
        ("P2_1/c", 14),
        ("P 1 21/c 1", 14),
        ("P12_1/c1", 14),
        ("C2/m", 12),
        ("Fm-3m", 225),
        ("fm-3m", 225),
        ("Fd3m", 227),
        ("R-3m:H", 166),
        ("Cmce", 64),
        ("P-1", 2),
        ("62.0", 62),  # as tables with empty cells have it
        (62.0, 62),
        ("P21/n", 14),
        ("P 21/a", 14),
        ("I2/a", 15),
        ("Cmca", 64),
        ("Ia3d", 230),
        ("Pa3", 205),
        ("F43m", 216),
        ("F-43m", 216),
    ],
)
def test_space_groups_by_symbol_and_number(text, number):
    assert parse_spacegroup(text) == number


def test_every_standard_symbol_is_known():
    assert [parse_spacegroup(sg_symbol_from_int_number(n)) for n in range(1, 231)] == list(range(1, 231))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Pnmaa", "there is no space group 'Pnmaa': .*; did you mean Pnma?"),
        ("0", "there is no space group 0: their numbers are 1 to 230"),
        ("231", "there is no space group 231"),
        ("-1", "there is no space group -1"),
        ("62.5", "there is no space group '62.5'"),
        ("", "there is no space group ''"),
    ],
)
def test_what_is_no_space_group(text, message):
    with pytest.raises(ValueError, match=message) as error:
        parse_spacegroup(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "formula"),
    [("LiFePO4", "LiFePO4"), ("Li2 O", "Li2O"), ("(NH4)2SO4", "(NH4)2SO4"), ("Li0.5FePO4", "Li0.5FePO4"), ("O2", "O2")],
)
def test_formulas(text, formula):
    assert parse_formula(text) == formula


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("LiFoo2", "'LiFoo2' is not a chemical formula: there is no element 'Foo'"),
        ("lifepo4", "element symbols begin with a capital letter"),
        ("D2O", "'D' is an isotope; write H"),
        ("Xx2", "there is no element 'Xx'"),
        ("CuSO4.5H2O", "write the water of a hydrate in brackets"),
        ("NaCl-", "'-' cannot be read"),
        ("Na1e5", "'e5' cannot be read"),
        ("Na0", "an amount is 0"),
        ("Fe0O", "an amount is 0"),
        ("Al2O3.2SiO2", "its dot may be a decimal point; write one formula"),
        ("Li1.", "'.' cannot be read"),
        ("LiFeO2)", "is not a chemical formula"),
        ("", "is not a chemical formula"),
        ("Np2Zz", "there is no element 'Zz'"),
    ],
)
def test_what_is_no_formula(text, message):
    with pytest.raises(ValueError, match=message):
        parse_formula(text)


def test_elements_and_suggestions():
    assert parse_elements(["Li", " P", "Li"]) == ("Li", "P")
    assert parse_elements("Li,P") == ("Li", "P")
    with pytest.raises(ValueError, match="'Li P S' is no element; separate elements by commas: Li,P,S"):
        parse_elements(["Li P S"])
    with pytest.raises(ValueError, match=r"did you mean Li,P,S\?"):
        parse_elements(["li", "p", "s"])
    with pytest.raises(ValueError, match="without: there is no element 'Xx'"):
        parse_elements(["Li", "Xx"], name="without")


def test_chemical_systems():
    assert parse_chemical_system("Li-P-S") == parse_chemical_system(["Li", "P", "S"]) == ("Li", "P", "S")
    with pytest.raises(ValueError, match=r"did you mean Li-P-S\?"):
        parse_chemical_system("li-p-s")
    with pytest.raises(ValueError, match="write it like Li-P-S"):
        parse_chemical_system("")
