import hashlib
import math

import pytest

from crystal_jax.errors import UserError
from tfds_mp20 import tables


def parse(text: str):
    return tables.parse_table(text.encode(), name="my.csv", source="mine")


def test_known_columns_are_read_exactly():
    (entry,) = parse(
        "cif,material_id,formation_energy_per_atom,band_gap,e_above_hull,spacegroup.number,source\n"
        '"a\nb",mp-1,-1.0204545885727976,0.1,,225,theirs\n'
    )
    assert entry.cif == "a\nb"
    assert (entry.material_id, entry.source, entry.spacegroup) == ("mp-1", "theirs", 225)
    assert (entry.formation_energy_per_atom, entry.band_gap) == (-1.0204545885727976, 0.1)
    assert math.isnan(entry.e_above_hull)


def test_only_the_cif_is_needed():
    first, second = parse("cif_str\nx\ny\n")
    assert (first.material_id, second.material_id) == ("1", "2")
    assert (second.cif, second.source, second.spacegroup, second.where) == ("y", "mine", -1, "my.csv, row 2")


def test_other_numbers_are_kept_and_other_texts_are_not():
    (entry,) = parse(",cif,heat_ref,dir_gap,comment,pretty_formula\n7,x,1.5,nan,good,NaCl\n")
    assert entry.extra == {"heat_ref": 1.5}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "my.csv: the file is empty"),
        ("cif\n", "my.csv: the file has a header but no rows"),
        ("a,b\n1,2\n", r"my.csv: no column 'cif' \(or 'cif_str'\); the columns are: a, b"),
        ("cif,band_gap\nx,1\ny,wide\n", "my.csv, row 2: band_gap is 'wide'"),
        ("cif\nx,y\n", "my.csv: row 1 has more cells"),
        ('cif\n"x\n', "my.csv is no CSV table"),
    ],
)
def test_a_bad_table_is_named_with_its_row(text: str, message: str):
    with pytest.raises(UserError, match=message):
        parse(text)


def test_bytes_that_are_no_text_are_refused():
    with pytest.raises(UserError, match=r"my\.csv is no CSV table"):
        tables.parse_table(b"\xff\xfe\x00", name="my.csv", source="mine")


def test_a_blob_id_is_what_git_prints():
    # `printf 'hello\n' | git hash-object --stdin`
    assert tables.git_blob_id(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"
    assert tables.git_blob_id(b"hello\n") != hashlib.sha1(b"hello\n").hexdigest()
