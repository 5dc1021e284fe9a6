"""A user's own crystals: a CSV table, a folder of three tables, or a folder of CIF files."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crystal_jax.errors import UserError
from tfds_mp20 import splits, tables
from tfds_mp20.crystals import Entry, Example, parse_all

FAIL, SKIP = "fail", "skip"

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class UserFiles:
    """Crystals from a path.

    Attributes:
        path: a CSV table (column `cif` or `cif_str`; .gz allowed); a folder of train, val and test
            tables; or a folder of *.cif files. Only the second comes with its splits; the others
            are split by formula.
        on_error: "fail" stops at a crystal that cannot be used; "skip" names it and goes on.
        max_entries: keep at most this many of a table or folder; None keeps all.
        seed: chooses which.
    """

    path: Path
    on_error: str = FAIL
    max_entries: int | None = None
    seed: int = 0

    def files(self) -> list[Path]:
        """The files to read, the same each time.

        Raises:
            UserError: there is nothing of the kind at the path.
        """
        if self.path.is_file():
            return [self.path]
        if not self.path.is_dir():
            raise UserError(f"there is no {self.path}; pass a CSV table, or a folder of tables or CIF files")
        if self._has_splits():
            return [tables.find(self.path, split) for split in splits.NAMES]
        if not (cifs := sorted(self.path.glob("*.cif"))):
            raise UserError(f"{self.path} has neither train/val/test.csv nor any *.cif; pass another --manual_dir")
        return cifs

    def digest(self) -> str:
        """Ten hex digits that change with any file's name or content."""
        total = hashlib.sha256()
        for path in self.files():
            content = hashlib.sha256(tables.read_bytes(path)).hexdigest()
            total.update(f"{path.name}\0{content}\0".encode())
        return total.hexdigest()[:10]

    def splits(self, dl_manager: Any) -> dict[str, Iterator[Example]]:
        """Reads, parses and, if need be, divides the crystals; needs nothing of TFDS's download manager.

        Raises:
            UserError: a file or a crystal is unusable.
        """
        del dl_manager
        if self._has_splits():
            parsed = {path.name.split(".")[0]: self._examples([path]) for path in self.files()}
            if empty := [split for split, examples in parsed.items() if not examples]:
                raise UserError(f"no usable crystal is left for {', '.join(empty)} in {self.path}; add some")
        else:
            parsed = splits.by_formula(self._examples(self.files()))
        return {split: iter(examples) for split, examples in parsed.items()}

    def _has_splits(self) -> bool:
        # One table is enough to mean it: an absent sister is then an error, not a folder of CIFs.
        return any((self.path / f"{split}.csv{end}").is_file() for split in splits.NAMES for end in ("", ".gz"))

    def _examples(self, paths: list[Path]) -> list[Example]:
        entries = [entry for path in paths for entry in _read(path)]
        if self.max_entries is not None and self.max_entries < len(entries):
            chosen = random.Random(self.seed).sample(range(len(entries)), self.max_entries)
            entries = [entries[index] for index in sorted(chosen)]
        examples, skipped = [], []
        label = paths[0].name if len(paths) == 1 else self.path.name
        with contextlib.closing(parse_all(entries, label=label)) as results:
            for result in results:
                if not isinstance(result, UserError):
                    examples.append(result)
                elif self.on_error == SKIP:
                    skipped.append(str(result))
                else:
                    raise UserError(f"{result} (or pass --on_error=skip)")
        for message in skipped:
            _log.warning("skipped: %s", message)
        if skipped:
            _log.warning("skipped %d of %d crystals of %s", len(skipped), len(entries), label)
        return examples


def _read(path: Path) -> list[Entry]:
    content = tables.read_bytes(path)
    if path.suffix == ".cif":
        text = content.decode(errors="replace")
        return [Entry(cif=text, where=path.name, material_id=path.stem, source=path.parent.name)]
    return tables.parse_table(content, name=path.name, source=path.name)
