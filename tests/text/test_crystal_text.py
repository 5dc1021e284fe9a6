import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymatgen.core import Element, Lattice, Structure

from crystal_jax.text.crystal_text import ELEMENTS, Crystal, CrystalTextError, TextFormat
from crystal_jax.text.prompts import mask_element
from tests.byte_pairs import HALITE


def crystals(max_atoms: int = 8) -> st.SearchStrategy[Crystal]:
    """Any numbers that a lattice may have, and any positions, also outside of the cell."""

    def build(lengths, angles, atoms):
        symbols, coordinates = zip(*atoms, strict=True)
        return Crystal(np.array(lengths), np.array(angles), np.array(coordinates), tuple(symbols))

    numbers = st.tuples(*[st.floats(-2, 2)] * 3)
    return st.builds(
        build,
        st.tuples(*[st.floats(1, 59)] * 3),
        st.tuples(*[st.floats(1, 179)] * 3),
        st.lists(st.tuples(st.sampled_from(ELEMENTS), numbers), min_size=1, max_size=max_atoms),
    )


def test_the_elements_are_the_first_of_the_periodic_table():
    assert tuple(Element.from_Z(z).symbol for z in range(1, 104)) == ELEMENTS


def test_text_of_a_known_crystal():
    halite = Crystal.from_structure(Structure(Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]))
    assert TextFormat().encode(halite) == HALITE


def test_paper_truncates_angles_and_prints_one_where_v2_wraps():
    crystal = Crystal(
        np.array([3.0, 3.04, 3.06]),
        np.array([89.9999, 59.6, 120.0]),
        np.array([[0.995, 0.994, 1.25]]),
        ("Te",),
    )
    assert TextFormat(version="paper").encode(crystal) == "3.0 3.0 3.1\n89 59 120\nTe\n0.99 0.99 0.25"
    assert TextFormat().encode(crystal) == "3.0 3.0 3.1\n90 60 120\nTe\n0.99 0.99 0.25"
    nearly_one = Crystal(crystal.lengths, crystal.angles, np.array([[0.9951, 0.999999, -1e-9]]), ("Te",))
    assert TextFormat(version="paper").encode(nearly_one).endswith("1.00 1.00 1.00")
    assert TextFormat().encode(nearly_one).endswith("0.00 0.00 0.00")


@given(crystals())
def test_v2_text_is_a_fixed_point(crystal):
    text = TextFormat().encode(crystal)
    assert "1.00" not in text.split("\n", 2)[2]
    assert TextFormat().encode(TextFormat().decode(text)) == text


@pytest.mark.parametrize("version", ["plain", "composition_first", "cif"])
@pytest.mark.parametrize("decimals", [1, 2, 3])
@given(crystal=crystals())
def test_any_precision_is_a_fixed_point_within_half_a_digit(version, decimals, crystal):
    text_format = TextFormat(version=version, decimals=decimals)
    text = text_format.encode(crystal)
    back = text_format.decode(text)
    assert text_format.encode(back) == text
    assert {len(word.value) for place, word in enumerate(text_format.words(text)[6:]) if place % 4} == {2 + decimals}
    difference = np.abs(np.mod(back.frac_coords - crystal.frac_coords + 0.5, 1) - 0.5)
    assert difference.max() <= 0.5 * 10**-decimals + 1e-9


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"decimals": 4}, "have 1, 2 or 3 decimals, not 4"),
        ({"decimals": 3, "version": "paper"}, "'paper' has 2 decimals, not 3"),
        ({"version": "cif", "coordinates": "cartesian"}, "'cif' has fractional coordinates only"),
        ({"version": "v4"}, "Unknown format version 'v4'"),
    ],
)
def test_formats_that_there_are_not(fields, message):
    with pytest.raises(ValueError, match=message):
        TextFormat(**fields)


CIF_HALITE = """data_Na1Cl1
_cell_length_a 5.6
_cell_length_b 5.6
_cell_length_c 5.6
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_symmetry_space_group_name_H-M 'P 1'
loop_
_atom_site_label
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
Na 0.00 0.00 0.00
Cl 0.50 0.50 0.50"""


def test_a_composition_comes_first():
    """The least electronegative element first, whatever the order of the sites; one that is masked before all."""
    text_format = TextFormat(version="composition_first")
    text = text_format.encode(
        TextFormat().decode(HALITE.replace("Na", "O").replace("Cl", "Fe") + "\nO\n0.25 0.25 0.25")
    )
    assert text.startswith("Fe1O2\n5.6 5.6 5.6\n90 90 90\nO\n")
    assert mask_element(text, "O").startswith("[MASK]2Fe1\n5.6 5.6 5.6\n90 90 90\n[MASK]\n")


@pytest.mark.parametrize("line", ["", "NaCl", "Na1 Cl1", "Na1Cl0", "5.6 5.6 5.6", "na1"])
def test_a_first_line_that_is_no_composition_is_named(line):
    with pytest.raises(CrystalTextError, match="expected a composition") as caught:
        TextFormat(version="composition_first").decode(f"{line}\n{HALITE}")
    assert caught.value.line == (1 if line else 2)  # empty lines are passed over


@pytest.mark.filterwarnings("ignore::UserWarning")  # pymatgen remarks on what it takes from the space group's name
def test_the_text_of_a_cif_is_one():
    """pymatgen reads from it what we do."""
    text_format = TextFormat(version="cif")
    assert text_format.encode(TextFormat().decode(HALITE)) == CIF_HALITE
    theirs = Crystal.from_structure(Structure.from_str(CIF_HALITE, fmt="cif"))
    ours = text_format.decode(CIF_HALITE)
    assert theirs.symbols == ours.symbols
    np.testing.assert_allclose(theirs.frac_coords, ours.frac_coords)
    np.testing.assert_allclose([*theirs.lengths, *theirs.angles], [*ours.lengths, *ours.angles])


@pytest.mark.parametrize(
    ("old", "new", "line", "problem"),
    [
        ("data_Na1Cl1", "data_", 1, "expected data_ and a composition"),
        ("data_Na1Cl1\n", "", 1, "expected data_ and a composition"),
        ("_cell_length_b", "_cell_length_c", 3, "expected _cell_length_b"),
        ("_cell_length_b 5.6", "_cell_length_b x", 3, "'x' is not a number"),
        ("_cell_length_c 5.6", "_cell_length_c 0.0", 4, "must be positive"),
        ("alpha 90", "alpha 180", 5, "between 0 and 180"),
        ("'P 1'", "P1", 8, "expected _symmetry_space_group_name_H-M"),
        ("Na 0.00", "Ln 0.00", 14, "not an element symbol"),
        ("Cl 0.50 0.50 0.50", "Cl 0.50 0.50", 15, "expected three numbers, found 2"),
        ("\nNa 0.00 0.00 0.00\nCl 0.50 0.50 0.50", "", 14, "ends before the first atom"),
        (CIF_HALITE[CIF_HALITE.index("\n_cell_angle_beta") :], "", 6, "the text ends before _cell_angle_beta"),
    ],
)
def test_errors_in_a_cif_name_the_line(old, new, line, problem):
    with pytest.raises(CrystalTextError, match=problem) as caught:
        TextFormat(version="cif").decode(CIF_HALITE.replace(old, new, 1))
    assert caught.value.line == line


@pytest.mark.parametrize("version", ["plain", "paper"])
@given(crystal=crystals())
def test_decode_is_within_rounding_of_the_crystal(version, crystal):
    back = TextFormat(version=version).decode(TextFormat(version=version).encode(crystal))
    assert back.symbols == crystal.symbols
    np.testing.assert_allclose(back.lengths, crystal.lengths, atol=0.05 + 1e-9)
    angle_error = crystal.angles - back.angles
    if version == "paper":
        assert ((angle_error >= 0) & (angle_error < 1)).all()
    else:
        assert (abs(angle_error) <= 0.5).all()
    difference = np.abs(np.mod(back.frac_coords - crystal.frac_coords + 0.5, 1) - 0.5)
    assert difference.max() <= 0.005 + 1e-9


def test_cartesian_coordinates_come_back_as_fractional_ones():
    crystal = Crystal(np.array([4.0, 5.0, 6.0]), np.array([90.0, 100, 110]), np.array([[0.1, 0.7, 0.4]]), ("O",))
    text_format = TextFormat(coordinates="cartesian")
    back = text_format.decode(text_format.encode(crystal))
    np.testing.assert_allclose(back.frac_coords, crystal.frac_coords, atol=0.005)


def test_cartesian_coordinates_without_a_cell_are_read_as_nothing():
    crystal = TextFormat(coordinates="cartesian").decode("5.6 5.6 5.6\n30 30 90\nNa\n1.00 -2.00 0.50")
    assert crystal.symbols == ("Na",)
    assert np.isnan(crystal.frac_coords).all()
    assert not crystal.forms_cell


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("", 1, "ends before the lattice"),
        ("5.6 5.6\n90 90 90", 1, "expected three numbers, found 2"),
        ("5.6 5.6 x\n90 90 90\nNa\n0 0 0", 1, "'x' is not a number"),
        ("5.6 5.6 nan\n90 90 90\nNa\n0 0 0", 1, "'nan' is not a number"),
        ("5.6 0.0 5.6\n90 90 90\nNa\n0 0 0", 1, "must be positive"),
        ("5.6 5.6 5.6\n90 90 180\nNa\n0 0 0", 2, "between 0 and 180"),
        ("5.6 5.6 5.6\n90 90 90", 3, "before the first atom"),
        ("5.6 5.6 5.6\n90 90 90\nLn\n0.00 0.00 0.00", 3, "not an element symbol"),
        (HALITE + "\nNa", 8, "no coordinates follow the last Na"),
        (HALITE.replace("0.50 0.50 0.50", "0.50 0.50"), 6, "expected three numbers, found 2"),
    ],
)
def test_errors_name_the_line_and_its_text(text, line, problem):
    with pytest.raises(CrystalTextError, match=problem) as caught:
        TextFormat().decode(text)
    assert caught.value.line == line
    assert str(caught.value).startswith(f"line {line}: ")


def test_cells_that_do_not_close():
    def crystal(*angles):
        return Crystal(np.full(3, 5.0), np.array(angles, float), np.zeros((1, 3)), ("H",))

    assert crystal(60, 60, 60).forms_cell
    assert not crystal(120, 120, 120).forms_cell  # flat: 360° in all
    assert not crystal(30, 30, 90).forms_cell  # one larger than the other two together
    with pytest.raises(ValueError, match="form no cell"):
        crystal(30, 30, 90).to_structure()


def test_disordered_structures_are_refused():
    alloy = Structure(Lattice.cubic(3), [{"Cu": 0.5, "Au": 0.5}], [[0, 0, 0]])
    with pytest.raises(ValueError, match="disordered"):
        Crystal.from_structure(alloy)


def test_translation_wraps_and_permutation_keeps_atoms_together():
    crystal = Crystal(np.full(3, 5.0), np.full(3, 90.0), np.array([[0.1, 0, 0], [0.9, 0.5, 0]]), ("Li", "F"))
    moved = crystal.translated(np.array([0.2, 0.0, 0.0]))
    np.testing.assert_allclose(moved.frac_coords, [[0.3, 0, 0], [0.1, 0.5, 0]])
    turned = crystal.permuted([1, 0])
    assert turned.symbols == ("F", "Li")
    np.testing.assert_allclose(turned.frac_coords[0], [0.9, 0.5, 0])


def test_sorting_is_by_printed_coordinates():
    coordinates = np.array([[0.5, 0.1, 0.1], [0.304, 0.9, 0.0], [0.296, 0.1, 0.0], [0.999, 0.2, 0.7]])
    crystal = Crystal(np.full(3, 5.0), np.full(3, 90.0), coordinates, ("O", "Na", "Cl", "H"))
    # 0.296 and 0.304 are both printed 0.30, so that y decides; 0.999 is printed 0.00.
    assert TextFormat().sorted(crystal).symbols == ("H", "Cl", "Na", "O")
