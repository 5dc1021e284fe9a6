import json

import numpy as np
import pytest
from pymatgen.core import Structure

from crystal_jax.errors import UserError
from crystal_jax.storage import worker_pool as parallel
from tfds_mp20 import crystals
from tfds_mp20.crystals import Entry


def entry(cif: str, **values) -> Entry:
    return Entry(**{"cif": cif, "where": "my.csv, row 3", "material_id": "m", "source": "s", **values})


def test_a_missing_space_group_is_found_and_a_given_one_kept(cif):
    assert crystals.to_example(entry(cif("Po")))["spacegroup"] == 221
    assert crystals.to_example(entry(cif("Po"), spacegroup=1))["spacegroup"] == 1


def test_isotopes_and_ions_become_elements(cif):
    heavy = crystals.to_example(entry(cif("D")))
    assert heavy["atomic_numbers"].tolist() == [1]
    assert heavy["formula"] == "H2"  # as pymatgen writes the elements that form molecules
    ion = cif("Na").replace(" Na  Na0", " Na+  Na0")
    assert "Na+" in ion
    assert crystals.to_example(entry(ion))["formula"] == "Na"


def test_extra_is_json(cif):
    assert json.loads(crystals.to_example(entry(cif("Po"), extra={"heat_ref": 0.1}))["extra"]) == {"heat_ref": 0.1}


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda text: "no crystal", "does not parse"),
        (lambda text: "", "there is no CIF"),
        (lambda text: text.replace("0.00000000  1\n", "0.00000000  0.5\n"), "disordered"),
        (lambda text: text.replace(" Po  Po0", " Xx  Xx0"), "no real element"),
        (
            lambda text: text.replace("_cell_length_a   4.00000000", "_cell_length_a nan"),
            "forms no cell: cell length nan",
        ),
        (
            lambda text: text.replace("'Po1'", "'Po1 O2'").replace("Po1\n", "'Po1 O2'\n"),
            "Po1 in the cell, Po1 O2 stated",
        ),
    ],
)
def test_a_bad_crystal_is_named_with_its_place(cif, spoil, reason):
    spoilt = spoil(cif("Po"))
    assert spoilt != cif("Po")
    with pytest.raises(UserError, match=rf"my\.csv, row 3: .*{reason}"):
        crystals.to_example(entry(spoilt))


def test_worker_processes_give_the_same_in_the_same_order(cif, monkeypatch):
    entries = [entry(cif(symbol), material_id=symbol) for symbol in ("Po", "Na", "Cu", "Fe")]
    entries.insert(2, entry("no crystal"))
    alone = list(crystals.parse_all(entries, label="alone"))
    monkeypatch.setattr(crystals, "_WORTH_A_WORKER", 3)
    monkeypatch.setattr(crystals, "available_workers", lambda: 2)
    monkeypatch.setattr(parallel, "_WORTH_A_PROCESS", 1)
    together = list(crystals.parse_all(entries, label="together"))
    for one, other in zip(alone, together, strict=True):
        if isinstance(one, UserError):
            assert str(one) == str(other)
        else:
            assert one.keys() == other.keys()
            assert all(np.array_equal(one[key], other[key]) for key in one)
    assert [isinstance(result, UserError) for result in together] == [False, False, True, False, False]


def test_sites_and_cell_are_pymatgens_own(cif):
    text = cif("Po").replace("angle_gamma   90.00000000", "angle_gamma   89.99999999")
    example = crystals.to_example(entry(text))
    expected = Structure.from_str(text, fmt="cif")
    assert np.frombuffer(example["lattice"], "<f8").tolist() == [*expected.lattice.parameters]
    assert int(np.frombuffer(example["lattice"], "<f8")[5]) == 89


def supercell(cif, *, moved=0.0):
    """Two cells of polonium, one atom of which is moved by so many Å."""
    structure = Structure.from_str(cif("Po"), fmt="cif") * (1, 1, 2)
    structure.translate_sites([1], [moved / 4, 0, 0], frac_coords=True)
    return entry(structure.to(fmt="cif"))


def test_a_supercell_is_reduced_where_that_is_asked_for(cif):
    assert len(crystals.to_example(supercell(cif))["atomic_numbers"]) == 2
    example = crystals.to_example(supercell(cif), primitive=True)
    assert len(example["atomic_numbers"]) == 1
    stored = Structure.from_str(example["cif"], fmt="cif")
    assert stored.frac_coords.tobytes() == example["frac_coords"]
    np.testing.assert_allclose(stored.lattice.abc, 4)


def test_a_distorted_supercell_keeps_its_cell(cif):
    assert len(crystals.to_example(supercell(cif, moved=0.05), primitive=True)["atomic_numbers"]) == 2


def test_a_primitive_cell_keeps_its_text(cif):
    text = cif("Po")
    assert crystals.to_example(entry(text), primitive=True)["cif"] == text
