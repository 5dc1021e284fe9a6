"""Reads a user's own crystals: a CSV table, a folder of three tables, or any other source of crystals."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import logging
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from crystal_jax.errors import UserError
from crystal_jax.structures.read import collect
from crystal_jax.tables import read_bytes
from tfds_mp20 import splits, tables
from tfds_mp20.crystals import Entry, Example, parse_all, to_example
from tfds_mp20.names import FAIL

MAX_ATOMS = 20  # largest number of atoms in a cell; samples have no more
_SHOWN = 50  # crystals named in one message
_RECIPE = "primitive cells, formulas compared"  # part of the digest; change it when the conversion from files changes

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class UserFiles:
    """Crystals from a path.

    Attributes:
        path: a folder of train, val and test tables (`.csv` or `.csv.gz`), or any path that
            `crystal_jax.structures.read` reads: a table, a folder or an archive of crystal files, and others. Only the
            first has splits; the others are split by formula.
        on_error: "fail" stops if crystals cannot be used, and names them all; "skip" names them and continues.
        primitive: whether to reduce cells to primitive ones.
        max_entries: largest number of crystals to keep of a table or folder; None keeps all.
        seed: seed that selects them.
    """

    path: Path
    on_error: str = FAIL
    primitive: bool = True
    max_entries: int | None = None
    seed: int = 0

    def digest(self) -> str:
        """Returns ten hex digits that change with any crystal's name or content, and with the preparation.

        Raises:
            UserError: there are no crystals at the path.
        """
        total = hashlib.sha256(f"{self.path.name}\0{_RECIPE}\0{self.primitive}\0".encode())
        for split, entries in self._entries(quiet=True).items():
            for entry in entries:
                facts = dataclasses.asdict(entry)
                total.update("\0".join([split, *(str(facts[name]) for name in sorted(facts)), ""]).encode())
        return total.hexdigest()[:10]

    def splits(self, dl_manager: Any) -> dict[str, Iterator[Example]]:
        """Reads and parses the crystals, and splits them if necessary; TFDS's download manager is not used.

        Raises:
            UserError: a file or a crystal is unusable.
        """
        del dl_manager
        examples = self._examples({split: self._chosen(some) for split, some in self._entries().items()})
        if not self._has_splits():
            parsed = splits.by_formula(examples[""])
        else:
            parsed = examples
            if empty := [split for split, some in parsed.items() if not some]:
                raise UserError(f"no usable crystal is left for {', '.join(empty)} in {self.path}; add some")
        return {split: iter(some) for split, some in parsed.items()}

    def _has_splits(self) -> bool:
        # One split table is enough: another missing one is then an error, not a folder of CIFs.
        return any((self.path / f"{split}.csv{end}").is_file() for split in splits.NAMES for end in ("", ".gz"))

    def _entries(self, *, quiet: bool = False) -> dict[str, list[Entry]]:
        """Returns the crystals of each split, or under "" if they are not split yet."""
        if self._has_splits():
            return {split: _of_table(tables.find(self.path, split)) for split in splits.NAMES}
        if not self.path.exists():
            raise UserError(f"there is no {self.path}; pass a CSV table, or a folder of tables or CIF files")
        found = collect(self.path)
        if not quiet:
            found.name_what_is_not_read(self.path)
        if found.table is not None:
            return {"": _of_table(found.table)}
        entries = [
            Entry(
                cif=each.cif,
                where=each.where or each.name,
                stated=each.formula,
                fault=each.fault,
                material_id=each.name,
                source=self.path.name,
            )
            for each in found.entries
        ]
        return {"": entries}

    def _chosen(self, entries: list[Entry]) -> list[Entry]:
        if self.max_entries is None or self.max_entries >= len(entries):
            return entries
        chosen = random.Random(self.seed).sample(range(len(entries)), self.max_entries)
        return [entries[index] for index in sorted(chosen)]

    def _examples(self, entries: dict[str, list[Entry]]) -> dict[str, list[Example]]:
        """Returns the usable crystals; depending on `on_error`, unusable ones are named in warnings or in an error."""
        convert = functools.partial(to_example, primitive=self.primitive)
        examples: dict[str, list[Example]] = {}
        unusable: list[str] = []
        for split, some in entries.items():
            with contextlib.closing(parse_all(some, convert, label=split or self.path.name)) as results:
                converted = list(results)
            examples[split] = [result for result in converted if not isinstance(result, UserError)]
            unusable += [str(result) for result in converted if isinstance(result, UserError)]
        total = sum(map(len, entries.values()))
        if unusable and self.on_error == FAIL:
            raise UserError(
                f"{len(unusable)} of {total} crystals cannot be used: {_listed(unusable)}; mend or remove them "
                "(or pass --on_error=skip)"
            )
        for message in unusable:
            _log.warning("skipped: %s", message)
        if unusable:
            _log.warning("skipped %d of %d crystals of %s", len(unusable), total, self.path.name)
        return examples


def _listed(messages: Sequence[str]) -> str:
    more = [f"and {len(messages) - _SHOWN} more"] if len(messages) > _SHOWN else []
    return "; ".join([*messages[:_SHOWN], *more])


def _of_table(path: Path) -> list[Entry]:
    return tables.parse_table(read_bytes(path), name=path.name, source=path.name)
