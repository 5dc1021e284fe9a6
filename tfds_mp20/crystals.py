"""From a crystal's CIF text to the facts that are stored: one entry, or many on all cores."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import json
import math
import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import numpy as np
from pymatgen.core import Composition, DummySpecies, Element, Structure
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer
from tqdm import tqdm

from crystal_jax.errors import UserError

Example = dict[str, Any]

_SYMPREC = 0.1  # Å; what the Materials Project uses for its space groups
_CHUNK = 8  # entries sent to a worker at a time
_WORTH_A_WORKER = 400  # entries; below it, starting a process (2 s) costs more than it saves


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """A crystal as its source gives it. NaN, or -1 for the space group, means the source is silent.

    Attributes:
        cif: the CIF text, not yet parsed.
        where: the place in the source, for messages: "train.csv, row 12".
        material_id: the source's own name for it.
        source: where the data come from.
        formation_energy_per_atom: eV/atom.
        band_gap: eV.
        e_above_hull: eV/atom.
        spacegroup: International Tables number.
        extra: further numbers or names the source has.
    """

    cif: str
    where: str
    material_id: str
    source: str
    formation_energy_per_atom: float = math.nan
    band_gap: float = math.nan
    e_above_hull: float = math.nan
    spacegroup: int = -1
    extra: Mapping[str, float | str] = dataclasses.field(default_factory=dict)


def parse_cif(cif: str) -> Structure:
    """Parses as `Structure.from_str(cif, fmt="cif")` does, but in silence.

    Raises:
        UserError: the text is not the CIF of an ordered crystal of real elements.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            structure = Structure.from_str(cif, fmt="cif")
    except Exception as error:  # pymatgen raises whatever its parser trips over
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"the CIF does not parse ({reason}); mend or remove it") from error
    if not structure.is_ordered:
        raise UserError("the crystal is disordered (partly occupied sites); give an ordered model of it")
    if any(isinstance(site.specie, DummySpecies) for site in structure):
        raise UserError("the crystal has a site that is no element; name its element")
    return structure


def to_example(entry: Entry) -> Example:
    """Parses an entry's CIF into a record of the data set.

    Sites are in the order pymatgen's parser gives: by electronegativity, and within an element the CIF's.
    An isotope or an ion is stored as its element.

    Raises:
        UserError: the CIF is unusable; the message begins with the entry's place.
    """
    try:
        structure = parse_cif(entry.cif)
    except UserError as error:
        raise UserError(f"{entry.where}: {error}") from error
    numbers = [site.specie.Z for site in structure]
    return {
        "cif": entry.cif,
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


def reduced_formula(numbers: Sequence[int]) -> str:
    """The reduced formula, as pymatgen writes it, of atomic numbers: [11, 17] gives "NaCl"."""
    counts = collections.Counter(Element.from_Z(number) for number in numbers)
    return Composition(counts).reduced_formula


def _pack(values: Any) -> bytes:
    """Little-endian float64: TFDS stores a float64 feature as float32, and 59.99999999° would become 60°."""
    return np.asarray(values, "<f8").tobytes()


def _spacegroup(structure: Structure) -> int:
    """Number of the space group spglib finds, or -1 if it finds none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return SpacegroupAnalyzer(structure, symprec=_SYMPREC).get_space_group_number()
    except Exception:  # spglib refuses e.g. overlapping atoms; the crystal is still a fact
        return -1


def parse_all(
    entries: Sequence[Entry], convert: Callable[[Entry], Example] = to_example, *, label: str
) -> Generator[Example | UserError, None, None]:
    """Converts entries on all cores, in order, under a progress bar; a refused one yields its error.

    Args:
        entries: what to convert.
        convert: a function of a module, so that worker processes can find it.
        label: the text before the progress bar.
    """
    attempt = functools.partial(_attempt, convert)
    workers = min(os.cpu_count() or 1, math.ceil(len(entries) / _WORTH_A_WORKER))
    with tqdm(total=len(entries), desc=label, unit=" crystals", mininterval=1) as progress:
        if workers < 2:
            for entry in entries:
                progress.update()
                yield attempt(entry)
            return
        # Not forked: the parent may run JAX's threads.
        context = multiprocessing.get_context("spawn")
        deaf = (signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
        others = set(multiprocessing.active_children())
        with concurrent.futures.ProcessPoolExecutor(workers, context, signal.signal, deaf) as pool:
            try:
                for result in pool.map(attempt, entries, chunksize=_CHUNK):
                    progress.update()
                    yield result
            except GeneratorExit:  # the caller has enough; what is being converted ends by itself, within moments
                pool.shutdown(cancel_futures=True)
                raise
            except BaseException:  # Ctrl-C: no half-done work is worth waiting for
                for worker in set(multiprocessing.active_children()) - others:
                    worker.terminate()
                raise


def _attempt(convert: Callable[[Entry], Example], entry: Entry) -> Example | UserError:
    try:
        return convert(entry)
    except UserError as error:
        return error
