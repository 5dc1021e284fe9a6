"""Reads a prepared data set record by record, without importing JAX or TensorFlow."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import tensorflow_datasets as tfds

from crystal_jax.errors import UserError

_INFO = "dataset_info.json"  # TFDS writes it last


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """Crystal of a data set. A number that its source lacks is NaN; an unknown space group is -1.

    Attributes:
        cif: CIF text from which the other fields were parsed.
        lattice: float64 [6]: a, b, c in Å, then α, β, γ in degrees, in full precision.
        frac_coords: float64 [n, 3], as pymatgen parses them, not wrapped into the cell.
        atomic_numbers: int32 [n]; sites are in pymatgen's order, by electronegativity.
        material_id: the source's name for the crystal.
        formation_energy_per_atom: eV/atom.
        band_gap: eV.
        e_above_hull: eV/atom above the convex hull.
        spacegroup: International Tables number.
        formula: pymatgen's reduced formula.
        source: origin of the crystal.
        extra: other properties in the source, by the source's names.
    """

    cif: str
    lattice: np.ndarray
    frac_coords: np.ndarray
    atomic_numbers: np.ndarray
    material_id: str
    formation_energy_per_atom: float
    band_gap: float
    e_above_hull: float
    spacegroup: int
    formula: str
    source: str
    extra: Mapping[str, float | str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """Name, version and size of a prepared data set.

    Attributes:
        name: name of the TFDS data set.
        config: its TFDS config: "amcsd", "mp20_open_100", ...
        version: version of the builder.
        rows: number of crystals by split.
    """

    name: str
    config: str
    version: str
    rows: Mapping[str, int]


class Records(Sequence[Record]):
    """Crystals of one split, with random access. Pickling it is as cheap as pickling a path.

    TFDS orders the crystals by a hash of their index in the source, so any slice is a fair sample, and the same one
    each time.
    """

    def __init__(self, directory: Path, split: str):
        self.directory = Path(directory)
        self.split = split

    @functools.cached_property
    def _source(self) -> Any:
        return _builder(self.directory).as_data_source(split=self.split)

    def __len__(self) -> int:
        return len(self._source)

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...

    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        rows = range(len(self))[index]  # handles negative and too large indices as a list does
        return [self._read(row) for row in rows] if isinstance(rows, range) else self._read(rows)

    def __getstate__(self) -> dict[str, Any]:
        # Open files are not pickled; a worker process opens its own.
        return {"directory": self.directory, "split": self.split}

    def __repr__(self) -> str:
        return f"Records({str(self.directory)!r}, {self.split!r})"

    def _read(self, row: int) -> Record:
        stored = self._source[row]
        return Record(
            cif=stored["cif"].decode(),
            lattice=_floats(stored["lattice"]),
            frac_coords=_floats(stored["frac_coords"]).reshape(-1, 3),
            atomic_numbers=stored["atomic_numbers"],
            material_id=stored["material_id"].decode(),
            formation_energy_per_atom=_floats(stored["formation_energy_per_atom"]).item(),
            band_gap=_floats(stored["band_gap"]).item(),
            e_above_hull=_floats(stored["e_above_hull"]).item(),
            spacegroup=int(stored["spacegroup"]),
            formula=stored["formula"].decode(),
            source=stored["source"].decode(),
            extra=json.loads(stored["extra"]),
        )


def open_split(directory: Path, split: str) -> Records:
    """Returns the crystals of one split of a prepared data set.

    Args:
        directory: path that `prepare` returned, with or without the version at its end.
        split: usually "train", "val" or "test".

    Raises:
        UserError: the directory is not a prepared data set, or has no such split.
    """
    rows = dataset_info(directory).rows
    if split not in rows:
        raise UserError(f"{directory} has no split {split!r}; it has: {', '.join(rows)}")
    return Records(directory, split)


def dataset_info(directory: Path) -> DatasetInfo:
    """Returns name, version and size of a prepared data set.

    Raises:
        UserError: the directory is not a prepared data set.
    """
    builder = _builder(directory)
    return DatasetInfo(
        name=builder.name,
        config=builder.builder_config.name if builder.builder_config else "",
        version=str(builder.version),
        rows={name: split.num_examples for name, split in builder.info.splits.items()},
    )


def _builder(directory: Path) -> tfds.core.DatasetBuilder:
    # TFDS's own error for a wrong directory is a page long.
    directory = Path(directory)
    versions = [path.parent for path in (directory / _INFO, *directory.glob(f"*/{_INFO}")) if path.is_file()]
    if len(versions) != 1:
        raise UserError(f"{directory} is no prepared data set; pass the path that 'crystal-jax prepare' prints")
    return tfds.builder_from_directory(versions[0])


def _floats(packed: bytes) -> np.ndarray:
    return np.frombuffer(packed, "<f8")
