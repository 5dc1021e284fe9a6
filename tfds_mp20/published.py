"""Reads published tables with fixed splits: checks that they are the published ones, then parses them."""

from __future__ import annotations

import dataclasses
import random
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from crystal_jax.errors import UserError
from crystal_jax.tables import read_bytes
from tfds_mp20 import splits, tables
from tfds_mp20.crystals import Entry, Example, parse_all

_CDVAE = "https://raw.githubusercontent.com/txie-93/cdvae/main/data"
_TIMEOUT = 15  # s; TFDS itself would retry an unreachable host for ten minutes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """Identity of one split's CSV file.

    Attributes:
        rows: number of crystals.
        blob: git blob id of the uncompressed bytes; None if it is unknown.
    """

    rows: int
    blob: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """Three published CSV tables, one per split.

    Attributes:
        source: source of crystals whose row names none.
        tables: tables by split.
        url: folder of the tables; None if they cannot be downloaded.
        max_entries: number of crystals to keep, approximately, each split in proportion; None keeps all.
        seed: seed that selects them.
    """

    source: str
    tables: Mapping[str, Table]
    url: str | None = None
    max_entries: int | None = None
    seed: int = 0

    def splits(self, dl_manager: Any) -> dict[str, Iterator[Example]]:
        """Checks all three tables, then returns their crystals, parsed lazily.

        Raises:
            UserError: a table is missing or is not the published one.
        """
        entries = {split: self._entries(split, path) for split, path in self._locate(dl_manager).items()}
        return {split: _examples(self._choose(split, rows), label=split) for split, rows in entries.items()}

    def _locate(self, dl_manager: Any) -> dict[str, Path]:
        try:
            folder = Path(dl_manager.manual_dir)
        except AssertionError:  # raised by TFDS if there is no manual_dir
            return self._download(dl_manager)
        return {split: tables.find(folder, split) for split in splits.NAMES}

    def _download(self, dl_manager: Any) -> dict[str, Path]:
        if self.url is None:
            raise UserError(f"{self.source} cannot be downloaded; pass --manual_dir=FOLDER with its three tables")
        urls = {split: f"{self.url}/{split}.csv" for split in splits.NAMES}
        try:
            request = urllib.request.Request(urls[splits.TRAIN], method="HEAD")
            urllib.request.urlopen(request, timeout=_TIMEOUT).close()
            print(f"downloading {self.url}/", file=sys.stderr)
            return {split: Path(path) for split, path in dl_manager.download(urls).items()}
        except Exception as error:  # URLError, requests' errors, TFDS's DownloadError
            raise UserError(
                f"{self.url}/ cannot be downloaded ({error}); put its train.csv, val.csv and test.csv into a "
                "folder and pass --manual_dir=FOLDER"
            ) from error

    def _entries(self, split: str, path: Path) -> list[Entry]:
        content, expected = read_bytes(path), self.tables[split]
        if expected.blob is not None:
            self._check(path, split, "git blob id", tables.git_blob_id(content), expected.blob)
        entries = tables.parse_table(content, name=path.name, source=self.source)
        self._check(path, split, "number of rows", len(entries), expected.rows)
        # Formula columns of published tables are not compared with the sites.
        return [dataclasses.replace(entry, stated="") for entry in entries]

    def _check(self, path: Path, split: str, what: str, found: object, expected: object) -> None:
        if found != expected:
            raise UserError(
                f"{path} is not the published {self.source} {split} table: its {what} is {found}, "
                f"expected {expected}; it is cut short, edited or another file, so fetch it again"
            )

    def _choose(self, split: str, entries: list[Entry]) -> list[Entry]:
        if self.max_entries is None:
            return entries
        share = self.max_entries * len(entries) / sum(table.rows for table in self.tables.values())
        chosen = random.Random(self.seed).sample(range(len(entries)), min(len(entries), max(1, round(share))))
        return [entries[index] for index in sorted(chosen)]


def _examples(entries: list[Entry], *, label: str) -> Iterator[Example]:
    for result in parse_all(entries, label=label):
        if isinstance(result, UserError):
            raise result
        yield result


MP20 = Published(
    source="cdvae/mp_20",
    url=f"{_CDVAE}/mp_20",
    tables={
        splits.TRAIN: Table(rows=27_136, blob="b1c9d498565ac2fd8d075a51ff2ef5e51ba6c21f"),
        splits.VAL: Table(rows=9_047, blob="7efe4d7ebeb4f460ceaad35e5326c42111d9c9a1"),
        splits.TEST: Table(rows=9_046, blob="5dc643041df53f5ce4970a79930ad262b4f07acd"),
    },
)
# The blob ids of the next two are unknown, so only their rows are counted.
PEROV5 = Published(
    source="cdvae/perov_5",
    url=f"{_CDVAE}/perov_5",
    tables={
        splits.TRAIN: Table(rows=11_356),
        splits.VAL: Table(rows=3_787),
        splits.TEST: Table(rows=3_785),
    },
)
CARBON24 = Published(
    source="cdvae/carbon_24",
    url=f"{_CDVAE}/carbon_24",
    tables={
        splits.TRAIN: Table(rows=6_091),
        splits.VAL: Table(rows=2_032),
        splits.TEST: Table(rows=2_030),
    },
)
MP20_OPEN = Published(
    source="mp20_open",
    tables={
        splits.TRAIN: Table(rows=12_901, blob="e8e15fd8796cd9f85c8a1d7a25811dea03558c78"),
        splits.VAL: Table(rows=1_000, blob="5144329eb986c60191378f9d0b9cc53c1e1cbede"),
        splits.TEST: Table(rows=1_590, blob="13f3c7589ca39f82fd811466ca036e04fab47c17"),
    },
)
