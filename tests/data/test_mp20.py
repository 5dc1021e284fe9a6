import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from crystal_jax.data import mp20
from crystal_jax.data.prepare import prepare
from crystal_jax.errors import UserError


@pytest.fixture(scope="module")
def directory(cif, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mine")
    rows = {"train": ("Po", "Na", "Cu"), "val": ("Fe",), "test": ("W", "Al")}
    for split, elements in rows.items():
        table = "".join(f'{element},-0.1,"{cif(element)}"\n' for element in elements)
        (folder / f"{split}.csv").write_text(f"material_id,e_above_hull,cif\n{table}")
    return prepare("csv", data_dir=tmp_path_factory.mktemp("data"), manual_dir=folder)


def test_records_are_what_was_given(directory, cif):
    records = {record.material_id: record for record in mp20.open_split(directory, "train")}
    assert set(records) == {"Po", "Na", "Cu"}
    po = records["Po"]
    assert po.lattice.dtype == po.frac_coords.dtype == np.float64
    assert po.lattice.tolist() == [4, 4, 4, 90, 90, 90]
    assert po.frac_coords.tolist() == [[0, 0, 0]]
    assert po.atomic_numbers.tolist() == [84]
    assert (po.formula, po.spacegroup, po.source, po.e_above_hull) == ("Po", 221, "train.csv", -0.1)
    assert po.cif == cif("Po")
    assert np.isnan([po.formation_energy_per_atom, po.band_gap]).all()


def test_records_are_a_sequence(directory):
    records = mp20.open_split(directory, "train")
    names = [record.material_id for record in records]
    assert len(records) == len(names) == 3
    assert records[-1].material_id == names[2]
    assert [record.material_id for record in records[1:]] == names[1:]
    with pytest.raises(IndexError):
        records[3]


def test_records_are_pickled_as_a_path(directory):
    records = mp20.open_split(directory, "test")
    first = records[0].formula
    pickled = pickle.dumps(records)
    assert len(pickled) < 1000
    assert pickle.loads(pickled)[0].formula == first


def test_info(directory):
    info = mp20.dataset_info(directory)
    assert (info.name, info.version, info.rows) == ("mp20", "1.0.0", {"train": 3, "val": 1, "test": 2})
    assert info.config == directory.parent.name
    assert mp20.dataset_info(directory.parent) == info  # without the version


def test_bad_paths_and_splits_are_refused(directory, tmp_path):
    for wrong in (tmp_path, tmp_path / "nowhere", directory.parent.parent):
        with pytest.raises(UserError, match="is no prepared data set"):
            mp20.open_split(wrong, "train")
    with pytest.raises(UserError, match=r"no split 'dev'; it has: .*train"):
        mp20.open_split(directory, "dev")


def test_reading_imports_neither_jax_nor_tensorflow(directory):
    code = (
        "import sys; from pathlib import Path; from crystal_jax.data import mp20;"
        f"mp20.open_split(Path({str(directory)!r}), 'val')[0];"
        "sys.exit(', '.join({'jax', 'tensorflow', 'pymatgen'} & set(sys.modules)) or None)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
