"""Converts CIF texts to records of the data set: one entry, or many on all cores."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import json
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import numpy as np
from pymatgen.core import Composition, Element, Structure
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer
from tqdm import tqdm

from crystal_jax.errors import UserError
from crystal_jax.storage.worker_pool import available_workers, map_in_order
from crystal_jax.structures.formats.cif import read_cif, write_cif
from crystal_jax.suppress_warnings import quiet

Example = dict[str, Any]

_SYMPREC = 0.1  # Å; the Materials Project's value
_SAME_PLACE = 0.01  # Å
_WORTH_A_WORKER = 400  # entries; for fewer, starting a process (2 s) costs more time than it saves


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """Crystal as its source states it. NaN, or -1 for the space group, means that the source lacks the value.

    Attributes:
        cif: the CIF text, not yet parsed.
        where: position in the source, for error messages: "train.csv, row 12".
        stated: formula that the source states in addition to the CIF.
        fault: why there is no CIF, if the source shows it.
        material_id: the source's name of the crystal.
        source: origin of the data.
        formation_energy_per_atom: eV/atom.
        band_gap: eV.
        e_above_hull: eV/atom.
        spacegroup: International Tables number.
        extra: further numbers or names in the source.
    """

    cif: str
    where: str
    stated: str = ""
    fault: str = ""
    material_id: str
    source: str
    formation_energy_per_atom: float = math.nan
    band_gap: float = math.nan
    e_above_hull: float = math.nan
    spacegroup: int = -1
    extra: Mapping[str, float | str] = dataclasses.field(default_factory=dict)


def parse_cif(cif: str, *, stated: str = "") -> Structure:
    """Parses a CIF into an ordered crystal of elements; isotopes and ions become their elements.

    Args:
        cif: the CIF text.
        stated: formula that the source states in addition to the CIF.

    Raises:
        UserError: the text has no such crystal, or its atoms differ from a stated formula.
    """
    try:
        return read_cif(cif, formula=stated).structure
    except ValueError as error:
        raise UserError(str(error)) from error


def to_example(entry: Entry, *, primitive: bool = False) -> Example:
    """Parses an entry's CIF into a record of the data set.

    Sites are in the order of pymatgen's parser: by electronegativity, and within an element as in the CIF.

    Args:
        entry: the crystal.
        primitive: whether to reduce its cell to a primitive one with fewer atoms, and store the CIF of that cell.

    Raises:
        UserError: the CIF is unusable; the message starts with the entry's position.
    """
    try:
        if not entry.cif.strip():
            raise UserError(entry.fault or "there is no CIF")
        read = read_cif(entry.cif, formula=entry.stated)
        cif, structure = entry.cif, read.structure
        smaller = primitive_cell(structure) if primitive else None
        if read.expanded or smaller is not None:
            cif = write_cif((smaller or structure).get_sorted_structure())
            structure = parse_cif(cif)
    except (UserError, ValueError) as error:
        raise UserError(f"{entry.where}: {error}") from error
    numbers = [site.specie.Z for site in structure]
    return {
        "cif": cif,
        "lattice": _pack(structure.lattice.parameters),
        "frac_coords": _pack(structure.frac_coords),
        "atomic_numbers": np.array(numbers, np.int32),
        "material_id": entry.material_id,
        "formation_energy_per_atom": _pack(entry.formation_energy_per_atom),
        "band_gap": _pack(entry.band_gap),
        "e_above_hull": _pack(entry.e_above_hull),
        "spacegroup": entry.spacegroup if entry.spacegroup > 0 else _spacegroup(structure),
        "formula": reduced_formula(numbers),
        "source": entry.source,
        "extra": json.dumps(dict(entry.extra)),
    }


@quiet()
def primitive_cell(structure: Structure) -> Structure | None:
    """Returns the primitive cell of a crystal, or None if its cell is primitive.

    Atoms that differ by less than 0.01 Å from a translation count as translated, so that a distorted superstructure
    keeps its cell. (pymatgen's own tolerance is 0.25 Å.)
    """
    try:
        found = structure.get_primitive_structure(tolerance=_SAME_PLACE)
    except (ValueError, ArithmeticError, IndexError, np.linalg.LinAlgError):
        return None
    # Built again without the sites' labels, which are not unique.
    return Structure(found.lattice, found.species, found.frac_coords) if len(found) < len(structure) else None


def reduced_formula(numbers: Sequence[int]) -> str:
    """Returns the reduced formula of atomic numbers in pymatgen's notation: [11, 17] gives "NaCl"."""
    counts = collections.Counter(Element.from_Z(number) for number in numbers)
    return Composition(counts).reduced_formula


def _pack(values: Any) -> bytes:
    """Encodes values as little-endian float64: TFDS stores a float64 feature as float32, and 59.99999999° would become
    60°.
    """
    return np.asarray(values, "<f8").tobytes()


@quiet()
def _spacegroup(structure: Structure) -> int:
    """Returns the number of the space group that spglib finds, or -1 if it finds none."""
    try:
        return SpacegroupAnalyzer(structure, symprec=_SYMPREC).get_space_group_number()
    except Exception:  # spglib rejects e.g. overlapping atoms; the crystal is kept
        return -1


def parse_all(
    entries: Sequence[Entry], convert: Callable[[Entry], Example] = to_example, *, label: str
) -> Generator[Example | UserError, None, None]:
    """Converts entries on all cores, in order, with a progress bar; a rejected entry yields its error.

    Args:
        entries: entries to convert.
        convert: module-level function, so that worker processes can import it.
        label: text of the progress bar.
    """
    attempt = functools.partial(_attempt, convert)
    workers = min(available_workers(), math.ceil(len(entries) / _WORTH_A_WORKER))
    results = map_in_order(attempt, entries, workers=workers, lost=_died)
    with contextlib.closing(results):
        yield from tqdm(results, label, len(entries), unit=" crystals", mininterval=1)


def _died(entry: Entry) -> UserError:
    return UserError(f"{entry.where}: the process that read it died")


def _attempt(convert: Callable[[Entry], Example], entry: Entry) -> Example | UserError:
    try:
        return convert(entry)
    except UserError as error:
        return error
