"""Tells which formulas the Materials Project has, and how complete a hull of known materials is.

The list is a file of the package dara-xrd (MIT): the reduced formulas of 132,285 crystals with their energies above the
hull and their space groups. It is fetched once into the cache; nothing of the package is installed or run.
"""

from __future__ import annotations

import functools
import gzip
import itertools
import json
import math
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from crystal_jax.errors import UserError
from crystal_jax.storage.files import cache_folder
from crystal_jax.storage.wheel_files import WheelFiles

FILE = "mp_struct_info.json.gz"
FILES = WheelFiles(
    "the Materials Project's formulas",
    "dara-xrd==1.3.0",
    "17 MB",
    "dara/data",
    {FILE: "ca3e6ca4519edacf637a60d8b0f13c6a6e871eed5d5ff7737432433555ae696e"},
)
STABLE = 0.0  # eV/atom above the hull; the list has materials on the hull at 0

Formula = frozenset[tuple[str, int]]  # elements with their numbers of atoms in the reduced formula

_PART = re.compile(r"([A-Z][a-z]?)(\d*)")


class KnownCrystal(NamedTuple):
    """Crystal of the list: energy above the hull by DFT in eV/atom, and number of its space group."""

    above: float
    spacegroup: int


class KnownMaterials:
    """Formulas and space groups of a list of known crystals, and which formulas are stable."""

    def __init__(self, crystals: Mapping[str, Sequence[KnownCrystal]], source: str):
        """Indexes a list of known crystals.

        Args:
            crystals: the crystals of each reduced formula; a formula without crystals is known, and not stable.
            source: description of the list, for reports.
        """
        self.source = source
        self._crystals: dict[Formula, tuple[KnownCrystal, ...]] = {}
        self._stable: dict[frozenset[str], list[Formula]] = defaultdict(list)
        for text, found in crystals.items():
            formula = reduced({symbol: int(number or 1) for symbol, number in _PART.findall(text)})
            self._crystals[formula] = (*self._crystals.get(formula, ()), *found)
        for formula in self._crystals:
            if self.stable_spacegroups(formula):
                self._stable[frozenset(symbol for symbol, _ in formula)].append(formula)

    def __len__(self) -> int:
        """Returns the number of formulas."""
        return len(self._crystals)

    def has(self, formula: Formula) -> bool:
        """Whether some crystal of this formula is in the list."""
        return formula in self._crystals

    def has_crystal(self, formula: Formula, spacegroup: int) -> bool:
        """Whether a crystal of this formula and space group is in the list."""
        return any(crystal.spacegroup == spacegroup for crystal in self._crystals.get(formula, ()))

    def stable_spacegroups(self, formula: Formula) -> list[int]:
        """Returns the space groups of the stable crystals of a formula."""
        return sorted({each.spacegroup for each in self._crystals.get(formula, ()) if each.above <= STABLE})

    def stable(self) -> Iterator[Formula]:
        """Yields the stable compounds."""
        return itertools.chain.from_iterable(found for system, found in self._stable.items() if len(system) > 1)

    def stable_in(self, elements: Iterable[str]) -> list[Formula]:
        """Returns the stable compounds of two or more of these elements."""
        symbols = sorted(set(elements))
        systems = (c for size in range(2, len(symbols) + 1) for c in itertools.combinations(symbols, size))
        return [formula for system in systems for formula in self._stable.get(frozenset(system), ())]


def reduced(counts: Mapping[str, float]) -> Formula:
    """Returns whole numbers of atoms by element, divided by their greatest common divisor."""
    whole = {symbol: round(number) for symbol, number in counts.items() if round(number)}
    divisor = math.gcd(*whole.values()) if whole else 1
    return frozenset((symbol, number // divisor) for symbol, number in whole.items())


def load_known_materials(*, fetch: bool) -> KnownMaterials | None:
    """Reads the list; returns None without it.

    Args:
        fetch: whether to fetch it if the cache lacks it; a line on stderr says why that fails.

    Raises:
        UserError: the file in the cache is not the published one.
    """
    folder = cache_folder() / "dara-xrd"
    if not folder.is_dir():
        if not fetch:
            return None
        try:
            FILES.fetch(folder, f"without them, more heights are lower bounds; put {FILE} of dara-xrd into {folder}")
        except UserError as error:
            print(error, file=sys.stderr)
            return None
    FILES.check(folder, f"delete the folder {folder} to fetch it again")
    return read_known_materials(folder / FILE)


@functools.cache
def read_known_materials(path: Path) -> KnownMaterials:
    """Reads a file of formulas, each with its crystals as [energy above the hull, [symbol, space group]].

    Raises:
        UserError: the file has another content.
    """
    try:
        content = json.loads(gzip.decompress(path.read_bytes()))
        crystals = {
            formula: [KnownCrystal(float(above), int(spacegroup)) for above, (_, spacegroup) in found]
            for formula, found in content.items()
        }
    except (OSError, EOFError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no list of known crystals: {error}") from error
    return KnownMaterials(crystals, f"Materials Project, {len(crystals):,} formulas (dara-xrd)")
