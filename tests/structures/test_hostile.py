"""Damaged files of every kind: each is refused in one line, or gives crystals and reasons, within seconds."""

import gzip
import io
import json
import random
import time
import zipfile

import pytest

from crystal_jax.errors import UserError
from crystal_jax.structures import parse
from crystal_jax.structures.read import collect

PATIENCE = 10  # s for one file
TOKENS = (
    b"nan",
    b"inf",
    b"-1",
    b"1e400",
    b"99999999999999999999",
    b"0",
    b"\0",
    b"\xff\xfe",
    b"'",
    b'"',
    b",",
    b"{",
    b"[",
)
TOKENS += (
    b"\r",
    b"\n\n",
    b"data_",
    b"loop_",
    b";",
    b".",
    b"?",
    b"D",
    b"Na+",
    b"Xx",
    b"P 1",
    b"_cell_length_a",
    b" " * 5000,
)


def damaged(content, rng):
    """Content with one to four faults."""
    found = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        begin = rng.randrange(len(found) + 1)
        end = min(len(found), begin + rng.choice((0, 1, 3, 30)))
        kind = rng.randrange(5)
        if kind == 0:
            found[begin:end] = rng.choice(TOKENS)
        elif kind == 1:
            del found[begin:end]
        elif kind == 2:
            found[begin:begin] = found[begin:end] * rng.choice((1, 2, 50))
        elif kind == 3:
            found[begin:end] = bytes(rng.randrange(256) for _ in range(end - begin))
        else:
            del found[begin:]
    return bytes(found)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A sound file of each kind."""
    import numpy as np
    from pymatgen.core import Lattice, Structure

    salt = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5] * 3])
    cif = salt.to(fmt="cif").encode()
    symmetric = salt.to(fmt="cif", symprec=0.1).encode()
    table = b'name,cif,formula,request_number\na,"%s",NaCl,0\nb,"%s",,1\n' % (cif, symmetric)
    dictionary = json.dumps(salt.as_dict())
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.cif", cif)
        file.writestr("sub/POSCAR", salt.to(fmt="poscar"))
    frame = '8\nLattice="5.64 0 0 0 5.64 0 0 0 5.64" Properties=species:S:1:pos:R:3 name=x\n'
    frame += "".join(f"{site.specie} {' '.join(map(str, site.coords))}\n" for site in salt)
    assert np.isfinite(salt.frac_coords).all()
    return {
        "a.cif": cif,
        "b.cif": symmetric + cif,
        "c.csv": table,
        "d.json": dictionary.encode(),
        "e.csv": b'cif\n"%s"\n' % dictionary.replace('"', '""').encode(),
        "f.vasp": salt.to(fmt="poscar").encode(),
        "g.extxyz": (frame * 2).encode(),
        "h.zip": archive.getvalue(),
        "i.cif.gz": gzip.compress(cif),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", ["a.cif", "b.cif", "c.csv", "d.json", "e.csv", "f.vasp", "g.extxyz", "h.zip", "i.cif.gz"]
)
def test_a_damaged_file_is_refused_or_read(files, name, tmp_path):
    rng = random.Random(name)
    path = tmp_path / name
    path.write_bytes(files[name])
    assert all(parse(entry).structure for entry in collect(path).entries)
    for number in range(60):
        content = damaged(files[name], rng)
        path.write_bytes(content)
        begin = time.monotonic()
        names, messages = read(path)
        assert len(set(names)) == len(names), (number, content)
        assert not any("\n" in text for text in (*names, *messages)), (number, content)
        assert time.monotonic() - begin < PATIENCE, (number, content)


def read(path):
    """The names of a file's crystals and what is wrong with them, or why it is refused."""
    try:
        entries = collect(path).entries
    except UserError as error:
        return [], [str(error)]
    assert entries
    samples = [parse(entry) for entry in entries]
    assert all((sample.structure is None) == (sample.failure is not None) for sample in samples)
    return [sample.name for sample in samples], [sample.failure for sample in samples if sample.failure]
