"""Tests the builder with dummy_data/, without TensorFlow, which `tfds.testing` would need."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from pymatgen.core import Structure

from tfds_mp20 import mp20_dataset_builder, published, splits, tables
from tfds_mp20.published import Published, Table

_DUMMY = Path(__file__).parent / "dummy_data"
_ROWS = {"train": 4, "val": 2, "test": 3}
_FLOATS = {"lattice", "frac_coords", "formation_energy_per_atom", "band_gap", "e_above_hull"}


def _dummy_config(name: str) -> mp20_dataset_builder.CrystalsConfig:
    """Returns the config of this name, with row counts and hashes of the dummy tables."""
    config = mp20_dataset_builder.make_config(name)
    assert isinstance(config.source, Published)
    expected = {
        split: Table(rows=rows, blob=tables.git_blob_id((_DUMMY / f"{split}.csv").read_bytes()))
        for split, rows in _ROWS.items()
    }
    source = dataclasses.replace(config.source, tables=expected)
    return mp20_dataset_builder.CrystalsConfig(name=f"dummy_{name}", source=source)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Builds the `mp20` config once."""
    return _build(_dummy_config("mp20"), tmp_path_factory.mktemp("data"))


def _build(config: mp20_dataset_builder.CrystalsConfig, data_dir: Path) -> Path:
    builder = mp20_dataset_builder.Builder(config=config, data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=_DUMMY))
    return Path(builder.data_dir)


def _sources(directory: Path) -> dict[str, list]:
    builder = tfds.builder_from_directory(directory)
    return {split: list(builder.as_data_source(split=split)) for split in builder.info.splits}


@pytest.mark.parametrize("name", ["mp20", "perov5", "carbon24", "mp20_open"])
def test_every_config_of_tables_has_its_splits(name: str, tmp_path: Path):
    """Each config has the expected rows, in three splits that share no crystal."""
    built = _sources(_build(_dummy_config(name), tmp_path))
    assert {split: len(rows) for split, rows in built.items()} == _ROWS
    identifiers = [row["material_id"] for rows in built.values() for row in rows]
    assert len(set(identifiers)) == sum(_ROWS.values())


def test_floats_survive_to_the_last_bit(directory: Path):
    """Float64 values are bit-equal; TFDS would round them to float32, and the truncated angle 59 would become 60."""
    crystals = {row["material_id"].decode(): row for row in _sources(directory)["train"]}
    salt = crystals["dummy-1"]
    expected = Structure.from_str(salt["cif"].decode(), fmt="cif")
    assert np.frombuffer(salt["lattice"], "<f8").tolist() == [*expected.lattice.parameters]
    assert int(np.frombuffer(salt["lattice"], "<f8")[3]) == 59
    assert np.frombuffer(salt["formation_energy_per_atom"], "<f8").item() == -1 / 7
    coords = np.frombuffer(crystals["dummy-4"]["frac_coords"], "<f8").reshape(-1, 3)
    rutile = Structure.from_str(crystals["dummy-4"]["cif"].decode(), fmt="cif")
    np.testing.assert_array_equal(coords, rutile.frac_coords)


def test_features_are_the_documented_ones(directory: Path):
    """Feature names and types are as documented; an empty cell is NaN."""
    rows = _sources(directory)["val"]
    assert rows[0].keys() == {
        *_FLOATS,
        *("cif", "atomic_numbers", "material_id", "spacegroup", "formula", "source", "extra"),
    }
    hulls = {row["formula"].decode(): np.frombuffer(row["e_above_hull"], "<f8").item() for row in rows}
    assert np.isnan(hulls["CsCl"])
    assert hulls["ZnS"] == 0.1 / 6
    by_formula = {row["formula"].decode(): row for row in rows}
    assert by_formula["CsCl"]["atomic_numbers"].tolist() == [55, 17]
    assert by_formula["CsCl"]["spacegroup"] == 221
    assert by_formula["CsCl"]["source"] == b"cdvae/mp_20"


def test_the_builder_is_found_by_its_tfds_name():
    """The module's name is the TFDS name; every named config exists, and `csv` requires a path."""
    assert mp20_dataset_builder.Builder.name == "mp20"
    assert set(mp20_dataset_builder.Builder.builder_configs) == {*mp20_dataset_builder.DATASETS} - {"csv"}
    assert {*mp20_dataset_builder.DATASETS} == {*mp20_dataset_builder._PUBLISHED, "amcsd", "csv"}


def test_metadata_files_are_read_by_tfds():
    """The builder's info contains README and citation."""
    metadata = mp20_dataset_builder.Builder.get_metadata()
    assert "little-endian float64" in metadata.description
    assert "xie2022crystal" in metadata.citation


def test_the_benchmark_counts_are_the_published_ones():
    """Row counts of MP-20, Perov-5 and Carbon-24 add up to those in CDVAE's README files (MP-20: less two)."""
    benchmarks = (published.MP20, published.PEROV5, published.CARBON24)
    totals = [sum(table.rows for table in benchmark.tables.values()) for benchmark in benchmarks]
    assert totals == [45_229, 18_928, 10_153]
    assert all(set(benchmark.tables) == set(splits.NAMES) for benchmark in benchmarks)


def test_no_tensorflow_is_imported(directory: Path):
    """Reading a data set does not import TensorFlow."""
    code = (
        "import sys, tensorflow_datasets as tfds;"
        f"tfds.builder_from_directory({str(directory)!r}).as_data_source(split='val')[0];"
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
