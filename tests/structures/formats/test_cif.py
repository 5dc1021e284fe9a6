import re

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from crystal_jax.structures import Entry, parse
from crystal_jax.structures.formats.cif import blocks, read_cif
from crystal_jax.suppress_warnings import quiet

ROCK_SALT = """data_salt
_chemical_formula_sum '{formula}'
_cell_formula_units_Z {units}
_symmetry_space_group_name_H-M '{group}'
_cell_length_a 5.64
_cell_length_b 5.64
_cell_length_c 5.64
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
{operations}loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
{sites}"""
IDENTITY = "loop_\n_symmetry_equiv_pos_as_xyz\n'x, y, z'\n"
SITES = "Na1 Na 0 0 0 1\nCl1 Cl 0.5 0.5 0.5 1\n"


def salt_text(*, formula="Na4 Cl4", units=4, group="F m -3 m", operations="", sites=SITES):
    return ROCK_SALT.format(formula=formula, units=units, group=group, operations=operations, sites=sites)


def failure(text, **facts):
    sample = parse(Entry("x", text, **facts))
    assert sample.structure is None
    assert "\n" not in sample.failure
    return sample.failure


@pytest.mark.parametrize(
    ("sites", "reason"),
    [
        ("Na1 Na 0 0 0 1.001\nCl1 Cl 0.5 0.5 0.5 1\n", "occupancies sum to 1.001 at a site, more than 1"),
        ("Na1 Na 0 0 0 .\nCl1 Cl 0.5 0.5 0.5 .\n", "the occupancy of the site Na1 is '.', which is no number"),
        ("Na1 Na 0 0 0 1\nCl1 Cl 1/2 0.5 0.5 1\n", "the coordinate x of the site Cl1 is '1/2', which is no number"),
        ("Na1 Na 0 0 . 1\nCl1 Cl 0.5 0.5 0.5 1\n", "the coordinate z of the site Na1 is '.', which is no number"),
        ("Na1 Na 0 0 ? 1\nCl1 Cl 0.5 0.5 0.5 1\n", "the coordinate z of the site Na1 is '?', which is no number"),
        ("Na1 Na 0 0 nan 1\nCl1 Cl 0.5 0.5 0.5 1\n", "a coordinate is not finite|does not parse"),
        ("Na1 Na 0 0 0 0\nCl1 Cl 0.5 0.5 0.5 0\n", "it has no cell, or no occupied site"),
        ("", "does not parse"),
    ],
)
def test_what_is_wrong_with_a_site_is_said(sites, reason):
    said = failure(salt_text(sites=sites))
    assert any(each in said for each in reason.split("|"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("_cell_length_a 5.64", "_cell_length_a nan"), "the lattice forms no cell: cell length nan"),
        (("_cell_length_a 5.64", "_cell_length_a -5"), "the lattice forms no cell: cell length -5"),
        (("_cell_length_a 5.64", "_cell_length_a 0.001"), "the lattice forms no cell: it is thinner than 0.01 Å"),
        (("_cell_length_a 5.64", "_cell_length_a wide"), "_cell_length_a is 'wide', which is no number"),
        (("_cell_length_a 5.64\n", ""), "it has no _cell_length_a"),
        (("_cell_angle_beta 90", "_cell_angle_beta 180"), "the lattice forms no cell: cell angle 180"),
        (
            ("alpha 90\n_cell_angle_beta 90", "alpha 20\n_cell_angle_beta 20"),
            "no three vectors have angles of 20, 20, 90",
        ),
        (("_atom_site_fract_x", "_atom_site_Cartn_x"), "its sites have no fractional coordinates"),
        (("_atom_site_label\n", "_atom_site_other\n"), "its sites have no _atom_site_label"),
        (("data_salt\n", ""), "it has no 'data_' line"),
        (("data_salt\n", "<!DOCTYPE html>\ndata_salt\n"), "it is a web page"),
        (("data_salt\n", f"data_salt\n_x {'y' * 30_000}\n"), "a line has more than 20,000 characters"),
    ],
)
def test_what_is_wrong_with_the_file_is_said(change, reason):
    text = salt_text()
    assert change[0] in text
    assert reason in failure(text.replace(*change))


def test_uncertainties_marks_and_crystal_systems_are_read():
    text = "\ufeff" + salt_text().replace("_cell_length_a 5.64", "_cell_length_a 5.640(1)")
    assert parse(Entry("x", text)).structure.formula == "Na4 Cl4"
    cubic = re.sub(r"_cell_(length_[bc]|angle_\w+) .*\n", "", salt_text()) + "\n_symmetry_cell_setting cubic\n"
    assert parse(Entry("x", cubic)).structure.lattice.abc == pytest.approx((5.64,) * 3)
    assert parse(Entry("x", salt_text().replace("data_salt", "DATA_salt"))).structure.formula == "Na4 Cl4"


@pytest.mark.parametrize("types", ["Na+ Cl-", "Na1+ Cl1-", "Na Cl"])
def test_oxidation_states_are_removed(types):
    sodium, chlorine = types.split()
    sites = SITES.replace(" Na ", f" {sodium} ").replace(" Cl ", f" {chlorine} ")
    numbers = f"loop_\n_atom_type_symbol\n_atom_type_oxidation_number\n{sodium} 1\n{chlorine} -1\n"
    structure = read_cif(salt_text(sites=sites, operations=numbers)).structure
    assert {str(site.specie) for site in structure} == {"Na", "Cl"}
    assert structure.formula == "Na4 Cl4"


def test_deuterium_is_hydrogen(salt):
    salt.replace_species({"Cl": "D"})
    structure = read_cif(salt.to(fmt="cif"), formula="NaD").structure
    assert structure.formula == "Na4 H4"
    assert read_cif(salt.to(fmt="cif"), formula="NaH").structure == structure


def test_a_formula_that_the_sites_do_not_have_is_a_failure():
    assert failure(salt_text(), formula="KCl") == "Na4 Cl4 in the cell, KCl stated"
    ammonia = SITES.replace("Na1 Na", "NH4 NH4")
    assert failure(salt_text(formula="N4 H16 Cl4", sites=ammonia)) == "Cl4 Nh4 in the cell, N4 H16 Cl4 stated"


def test_missing_hydrogens_are_a_remark_or_refused():
    """X-rays hardly see them. A reference without its hydrogens still knows a crystal without them."""
    water = SITES.replace("Cl1 Cl", "Wat Wat")
    for text, remark in (
        (salt_text(formula="Na4 Cl4 H8"), "Na4 Cl4 in the cell, Na4 Cl4 H8 stated"),
        (salt_text(formula="Na4 H8 O4", sites=water), "Na4 O4 in the cell, Na4 H8 O4 stated"),
    ):
        sample = parse(Entry("x", text))
        assert (sample.failure, sample.remark) == (None, remark)
        with pytest.raises(ValueError, match=remark):  # nothing to train on
            read_cif(text)
    assert failure(salt_text(formula="Na4 Cl8 H8")) == "Na4 Cl4 in the cell, Na4 Cl8 H8 stated"
    assert parse(Entry("x", salt_text())).remark is None


@pytest.mark.parametrize("stated", ["ClNa", "Na Cl", "Na4Cl4", "Na0.5 Cl0.5", "Na0.999 Cl", "?", "what ?", "", "X Cl"])
def test_a_formula_that_agrees_or_says_nothing_is_none(stated):
    assert parse(Entry("x", salt_text(), formula=stated)).failure is None


def test_a_formula_over_several_lines_is_read():
    text = salt_text().replace("_chemical_formula_sum 'Na4 Cl4'", "_chemical_formula_sum\n;\nNa4 Cl4\nH2\n;")
    assert parse(Entry("x", text)).remark == "Na4 Cl4 in the cell, Na4 Cl4 H2 stated"


def test_a_group_without_its_operations_is_applied():
    """As CrystaLLM writes CIFs before its post-processing."""
    sample = parse(Entry("x", salt_text(operations=IDENTITY)))
    assert sample.structure.formula == "Na4 Cl4"
    assert sample.structure.density == pytest.approx(2.164, abs=1e-3)
    with quiet():
        assert sample.structure.get_space_group_info()[1] == 225
    assert parse(Entry("x", sample.cif)).structure == sample.structure  # the sample's CIF is of the whole cell
    by_unit = salt_text(operations=IDENTITY, formula="Na Cl")  # as the standard states it
    assert parse(Entry("x", by_unit)).structure.formula == "Na4 Cl4"


def test_a_group_that_does_not_give_the_formula_is_not_applied():
    assert failure(salt_text(operations=IDENTITY, formula="Na8 Cl8")) == "Na1 Cl1 in the cell, Na8 Cl8 stated"
    assert failure(salt_text(operations=IDENTITY, group="P m -3 m")) == "Na1 Cl1 in the cell, Na4 Cl4 stated"
    assert failure(salt_text(operations=IDENTITY, formula="Na4 O4")) == "Na1 Cl1 in the cell, Na4 O4 stated"


def test_a_whole_cell_under_a_group_stays_as_it_is(salt):
    sites = "".join(
        f"{site.specie}{i} {site.specie} {' '.join(map(str, site.frac_coords))} 1\n" for i, site in enumerate(salt)
    )
    for formula, units in (("Na4 Cl4", 4), ("Na Cl", 4), ("Na Cl", 1)):
        text = salt_text(operations=IDENTITY, sites=sites, formula=formula, units=units)
        sample = parse(Entry("x", text))
        assert len(sample.structure) == 8
        assert sample.cif == text
    # In P1 there is no group to apply, and a formula unit in place of the cell's contents is no fault.
    primitive = salt.get_primitive_structure().to(fmt="cif").replace("'Na1 Cl1'", "'Na4 Cl4'")
    assert len(parse(Entry("x", primitive)).structure) == 2


def test_blocks_of_crystals():
    first, second = salt_text(), salt_text().replace("data_salt", "data_other")
    paper = "data_global\n_publ_section_title\n;\ndata_ of a text\n;\n"
    assert blocks(first) == [("salt", first)]
    assert blocks("no block") == [("", "no block")]
    assert blocks(paper + first + second) == [("salt", first), ("other", second)]
    assert "it holds 2 crystals (salt, other), not one" in failure(first + second)
    assert parse(Entry("x", paper + first)).structure.formula == "Na4 Cl4"


def test_too_many_sites_are_refused_at_once():
    rows = "".join(f"Na{i} Na 0.{i:05d} 0 0 1\n" for i in range(6000))
    assert "6000 sites with their symmetry are too many" in failure(salt_text(sites=rows, group="P 1"))
    rows = "".join(f"Na{i} Na 0.{i:05d} 0.1 0.2 1\n" for i in range(1000))
    assert "1000 sites with their symmetry are too many" in failure(salt_text(sites=rows))


def test_blank_lines_cost_nothing():
    assert parse(Entry("x", salt_text().replace("loop_\n", "loop_\n" + " \n" * 200_000))).failure is None


def test_a_crystal_of_elements_is_what_pymatgen_reads(salt):
    rng = np.random.default_rng(0)
    structure = Structure(Lattice(salt.lattice.matrix + rng.random((3, 3))), salt.species, rng.random((8, 3)))
    text = structure.to(fmt="cif")
    expected = Structure.from_str(text, fmt="cif")
    found = read_cif(text).structure
    assert found.frac_coords.tobytes() == expected.frac_coords.tobytes()
    assert found.lattice.matrix.tobytes() == expected.lattice.matrix.tobytes()
    assert found.species == expected.species
