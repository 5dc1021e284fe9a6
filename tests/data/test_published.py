import dataclasses
import urllib.error
from pathlib import Path
from types import SimpleNamespace

import pytest

import tfds_mp20
from crystal_jax.errors import UserError
from tfds_mp20 import published, splits, tables
from tfds_mp20.published import Table

DUMMY = Path(tfds_mp20.__file__).parent / "dummy_data"


class NoManualDir:
    """TFDS's download manager where nothing was put by hand."""

    @property
    def manual_dir(self):
        raise AssertionError("Manual directory does not exist or is empty.")

    def download(self, urls):
        return {split: DUMMY / Path(url).name for split, url in urls.items()}


def by_hand(folder: Path):
    return SimpleNamespace(manual_dir=folder)


@pytest.fixture
def dummy():
    """MP-20, if it were the dummy tables."""
    blobs = {split: tables.git_blob_id((DUMMY / f"{split}.csv").read_bytes()) for split in splits.NAMES}
    rows = {"train": 4, "val": 2, "test": 3}
    return dataclasses.replace(
        published.MP20, tables={split: Table(rows=rows[split], blob=blobs[split]) for split in splits.NAMES}
    )


def test_another_file_is_told_by_its_blob_id():
    with pytest.raises(UserError, match=r"train\.csv .*git blob id is \w{40}, expected b1c9d498565ac2fd8d075a51ff"):
        published.MP20.splits(by_hand(DUMMY))


def test_a_changed_byte_is_noticed(dummy, tmp_path):
    for split in splits.NAMES:
        (tmp_path / f"{split}.csv").write_bytes((DUMMY / f"{split}.csv").read_bytes())
    assert len(dummy.splits(by_hand(tmp_path))) == 3
    changed = tmp_path / "test.csv"
    changed.write_bytes(changed.read_bytes().replace(b"GaAs", b"GaAt", 1))
    with pytest.raises(UserError, match=r"test\.csv .*git blob id"):
        dummy.splits(by_hand(tmp_path))


def test_a_truncated_table_is_told_by_its_rows():
    with pytest.raises(UserError, match=r"train\.csv .*number of rows is 4, expected 11356"):
        published.PEROV5.splits(by_hand(DUMMY))


def test_an_absent_table_is_named(dummy, tmp_path):
    (tmp_path / "train.csv").write_bytes((DUMMY / "train.csv").read_bytes())
    with pytest.raises(UserError, match=r"has no val\.csv or val\.csv\.gz"):
        dummy.splits(by_hand(tmp_path))


def test_without_network_the_cure_is_told(dummy, monkeypatch):
    def unreachable(*args, **kwargs):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(published.urllib.request, "urlopen", unreachable)
    with pytest.raises(UserError, match=r"mp_20/ cannot be downloaded .*Name or service.*--manual_dir"):
        dummy.splits(NoManualDir())


def test_a_download_is_checked_and_parsed(dummy, monkeypatch):
    asked = []

    def reachable(request, timeout):
        asked.append(request.full_url)
        return SimpleNamespace(close=lambda: None)

    monkeypatch.setattr(published.urllib.request, "urlopen", reachable)
    parts = dummy.splits(NoManualDir())
    assert asked == ["https://raw.githubusercontent.com/txie-93/cdvae/main/data/mp_20/train.csv"]
    assert [example["formula"] for example in parts["test"]] == ["Si", "GaAs", "Cu"]


def test_what_cannot_be_downloaded_is_asked_for():
    with pytest.raises(UserError, match="mp20_open cannot be downloaded; pass --manual_dir"):
        published.MP20_OPEN.splits(NoManualDir())


def test_a_subset_is_seeded_and_keeps_the_proportions(dummy):
    def chosen(**options):
        parts = dataclasses.replace(dummy, **options).splits(by_hand(DUMMY))
        return {split: [example["material_id"] for example in part] for split, part in parts.items()}

    assert {split: len(ids) for split, ids in chosen(max_entries=4).items()} == {
        "train": 2,
        "val": 1,
        "test": 1,
    }
    assert chosen(max_entries=4) == chosen(max_entries=4)
    assert len({str(chosen(max_entries=4, seed=seed)) for seed in range(8)}) > 1
    assert chosen(max_entries=999) == chosen()


def test_a_bad_crystal_stops_the_build_with_its_row(dummy, tmp_path):
    for split in splits.NAMES:
        (tmp_path / f"{split}.csv").write_bytes((DUMMY / f"{split}.csv").read_bytes())
    broken = tmp_path / "val.csv"
    broken.write_text(broken.read_text().replace("_cell_length_a", "_cell_width_a"))
    unchecked = dataclasses.replace(dummy, tables={s: Table(rows=t.rows) for s, t in dummy.tables.items()})
    with pytest.raises(UserError, match=r"^val\.csv, row 1: CIF does not parse"):
        list(unchecked.splits(by_hand(tmp_path))["val"])
