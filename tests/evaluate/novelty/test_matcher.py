import re

import pytest
from pymatgen.core import Lattice, Structure

from crystal_jax.evaluate.novelty import matcher as novelty
from crystal_jax.evaluate.novelty.matcher import (
    LOOSE_MATCHER,
    absent_from,
    find_matches,
    group_by_formula,
    is_first_occurrence,
    reduce_cell,
)
from crystal_jax.structures import Entry


@pytest.fixture
def cells(salt, cesium_chloride):
    """NaCl twice in different guises, CsCl, and NaCl in the structure of CsCl."""
    other_guise = salt.copy()
    other_guise.translate_sites(range(len(salt)), [0.1, 0.2, 0.3])
    other_guise.make_supercell([1, 1, 2])
    other_guise.scale_lattice(1.3 * other_guise.volume)
    polymorph = Structure(Lattice.cubic(3.3), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    return [reduce_cell(s) for s in (salt, other_guise, cesium_chloride, polymorph)]


def test_repeats_are_found_in_any_guise(cells):
    assert is_first_occurrence(cells) == [True, False, True, True]
    assert is_first_occurrence(cells[::-1]) == [True, True, True, False]


def test_known_crystals_are_not_new(cells, salt):
    assert absent_from([Entry("known", salt.to(fmt="cif"))], cells) == [False, False, True, True]


def test_known_crystals_are_found_without_a_formula_in_the_header(cells, salt):
    lines = [line for line in salt.to(fmt="cif").splitlines() if "_chemical_formula" not in line]
    assert absent_from([Entry("known", "\n".join(lines))], cells) == [False, False, True, True]


def test_everything_is_new_to_an_empty_or_unreadable_training_set(cells):
    assert absent_from([], cells) == [True] * 4
    assert absent_from([Entry("bad", "no CIF at all")], cells) == [True] * 4


def test_only_entries_of_a_wanted_formula_are_parsed(cells, salt, monkeypatch):
    parsed = []
    monkeypatch.setattr(novelty, "parse", lambda entry: parsed.append(entry.name) or real_parse(entry))
    cif = salt.to(fmt="cif")
    absent_from([Entry("same", cif), Entry("other", cif.replace("Na", "K"))], cells)
    assert parsed == ["same"]


def test_what_has_no_cell_is_neither_unique_nor_new(salt):
    assert is_first_occurrence([None]) == [False]
    assert absent_from([], [None]) == [False]


def test_a_pair_that_cannot_be_compared_is_taken_as_the_same(cells, monkeypatch):
    def fail(*_, **__):
        raise ValueError("no match for a reason of the matcher")

    monkeypatch.setattr(novelty.StructureMatcher, "fit", fail)
    assert is_first_occurrence(cells[:1] + cells[:1]) == [True, False]


real_parse = novelty.parse


def test_looser_tolerances_find_more(cesium_chloride):
    sheared = Structure(Lattice.from_parameters(4.12, 4.12, 4.12, 97, 90, 90), ["Cs", "Cl"], [[0, 0, 0], [0.5] * 3])
    cells = [reduce_cell(cesium_chloride), reduce_cell(sheared)]
    assert is_first_occurrence(cells) == [True, True]
    assert is_first_occurrence(cells, tolerances=LOOSE_MATCHER) == [True, False]
    known = group_by_formula([Entry("mp-1", cesium_chloride.to(fmt="cif"))], cells)
    assert find_matches(known, cells) == ["mp-1", None]
    assert find_matches(known, cells, tolerances=LOOSE_MATCHER) == ["mp-1", "mp-1"]


def formulas_twisted(cif, stated):
    return re.sub(r"(_chemical_formula_sum\s+).*", rf"\1'{stated}'", cif)


def test_ions_and_isotopes_are_their_elements_in_any_order(salt):
    ions = salt.copy()
    ions.add_oxidation_state_by_element({"Na": 1, "Cl": -1})
    plain, charged = Entry("plain", salt.to(fmt="cif")), Entry("charged", ions.to(fmt="cif"))
    cells = [reduce_cell(real_parse(entry).structure) for entry in (plain, charged)]
    assert is_first_occurrence(cells) == is_first_occurrence(cells[::-1]) == [True, False]
    assert absent_from([plain], cells) == absent_from([charged], cells) == [False, False]
    hydride = Structure(Lattice.cubic(4.08), ["Li", "D"], [[0, 0, 0], [0.5] * 3])
    light = hydride.copy()
    light.replace(1, "H")
    heavy = Entry("heavy", hydride.to(fmt="cif"), formula="LiD")
    assert absent_from([heavy], [reduce_cell(light)]) == [False]


def test_a_formula_that_the_sites_do_not_have_finds_nothing(cells, salt, capsys):
    cif = salt.to(fmt="cif")
    entries = [Entry("column", cif, formula="KCl"), Entry("header", formulas_twisted(cif, "Na4 Cl8"))]
    cells = [*cells, reduce_cell(Structure(Lattice.cubic(4), ["K", "Cl"], [[0, 0, 0], [0.5] * 3]))]
    assert absent_from(entries, cells) == [True] * 5
    said = capsys.readouterr().err
    assert "1 of 1 crystals with the samples' formulas cannot be read" in said
    assert "the first is column: Na4 Cl4 in the cell, KCl stated" in said


def test_a_reference_without_its_hydrogens_knows_a_crystal_without_them(salt):
    """A file that is judged against itself is not new."""
    known = Entry("measured", formulas_twisted(salt.to(fmt="cif"), "Na4 Cl4 H8"))
    assert absent_from([known], [reduce_cell(salt)]) == [False]
