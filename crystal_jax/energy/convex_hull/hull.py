"""Computes the energy of crystals above the convex hull of known materials.

The hull is built from a file of formation energies by composition (CSV), or of energies, from which formation energies
are derived: by composition (CSV of 'crystal-jax hull') or of computed entries (JSON). The hull energy at a composition
is the lowest energy that a mixture of known materials reaches. It is found by linear programming over the known
materials that contain only its elements.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from pymatgen.core import Composition
from scipy.optimize import linprog

from crystal_jax.energy.convex_hull.entries import KnownEntry, check_amounts, parse_formula, read_entries
from crystal_jax.errors import UserError
from crystal_jax.json_files import COMPRESSED, JsonObject, describe, finite_text, parse_json, read_bytes, stored_bytes
from crystal_jax.storage.files import as_path
from crystal_jax.suppress_warnings import quiet
from crystal_jax.tables import Table, parse_rows

_SAME = 1e-9  # eV/atom; smaller differences between materials of one composition are ignored
_LEAST_SHARE = 1e-6  # smallest share of a material in a mixture; smaller ones are rounding errors
_DIGITS = 5  # decimals of the shares that identify a composition; files round the shares

FILE = "hull.csv.gz"  # in a folder of 'crystal-jax hull'
COLUMNS = ("composition", "energy_per_atom", "id", "energy_model")

Material = tuple[Mapping[str, float], float]  # amounts of the elements by symbol, and formation energy in eV/atom


@dataclasses.dataclass(frozen=True)
class HullResult:
    """Energy of a crystal relative to the convex hull.

    Attributes:
        above: energy above the hull in eV/atom; negative below the hull of the known materials.
        formation_energy: formation energy, eV/atom.
        known_in_system: number of known materials with exactly the crystal's elements; if 0, the energy above the hull
            is at best a lower bound.
        decomposition: formulas of the hull's materials at the crystal's composition, each with its share of atoms.
    """

    above: float
    formation_energy: float
    known_in_system: int
    decomposition: tuple[tuple[str, float], ...]


@dataclasses.dataclass(frozen=True)
class HullMaterial:
    """Known material of a chemical system.

    Attributes:
        formula: reduced formula.
        shares: shares of the elements in its atoms.
        formation_energy: eV/atom.
        above: energy above the hull, eV/atom.
    """

    formula: str
    shares: Mapping[str, float]
    formation_energy: float
    above: float


class Hull:
    """Convex hull of known materials, with reference energies of the elements."""

    def __init__(
        self,
        materials: Iterable[Material],
        elements: Mapping[str, float],
        source: str,
        *,
        energy_model: str | None = None,
    ):
        """Keeps the material of lowest energy at each composition.

        Args:
            materials: amounts of the elements by symbol, and formation energies, eV/atom.
            elements: the energy of each element in its reference state, eV/atom, corrected.
            source: description of the hull's source, for the report.
            energy_model: the potential whose energies these are, as in `load_model`; None for DFT.
        """
        self.elements, self.source, self.energy_model = dict(elements), source, energy_model
        lowest: dict[frozenset[tuple[str, float]], Material] = {}
        for amounts, energy in materials:
            total = sum(amounts.values())
            shares = {symbol: amount / total for symbol, amount in amounts.items()}
            key = frozenset((symbol, round(share, _DIGITS)) for symbol, share in shares.items())
            if len(shares) > 1 and (key not in lowest or energy < lowest[key][1] - _SAME):
                lowest[key] = (shares, energy)
        self._by_system: dict[frozenset[str], list[Material]] = defaultdict(list)
        for material in lowest.values():
            self._by_system[frozenset(material[0])].append(material)
        self.size = len(lowest)

    def systems(self) -> set[frozenset[str]]:
        """Returns the chemical systems with at least one known material."""
        return set(self._by_system)

    def has(self, counts: Mapping[str, float]) -> bool:
        """Whether a known material has this composition; always true for a single element."""
        total = sum(counts.values())
        shares = {symbol: number / total for symbol, number in counts.items()}
        return len(shares) == 1 or any(
            all(abs(mix[symbol] - share) < 10.0**-_DIGITS for symbol, share in shares.items())
            for mix, _ in self._by_system.get(frozenset(shares), ())
        )

    def num_in_system(self, elements: Iterable[str]) -> int:
        """Returns the number of materials with exactly these elements."""
        return len(self._by_system.get(frozenset(elements), ()))

    def materials(self, elements: Iterable[str]) -> list[HullMaterial]:
        """Returns the elements and the known materials of these elements or some of them, one a composition."""
        symbols = sorted(set(elements))
        found: list[Material] = [({symbol: 1.0}, 0.0) for symbol in symbols] + self._within(symbols)
        return [
            HullMaterial(_formula(mix), mix, energy, max(0.0, energy - self._lowest(mix)[0])) for mix, energy in found
        ]

    def _within(self, symbols: Sequence[str]) -> list[Material]:
        """Returns the known compounds of these elements or some of them."""
        return [
            material
            for size in range(2, len(symbols) + 1)
            for system in itertools.combinations(sorted(symbols), size)
            for material in self._by_system.get(frozenset(system), ())
        ]

    def height(self, composition: Composition, energy: float) -> HullResult:
        """Returns the energy above the hull of a composition with the given corrected energy (eV/atom).

        Raises:
            ValueError: an element has no reference energy.
        """
        shares = composition.fractional_composition.get_el_amt_dict()
        if missing := [symbol for symbol in shares if symbol not in self.elements]:
            raise ValueError(f"no reference energy of {', '.join(missing)}")
        formation = energy - sum(share * self.elements[symbol] for symbol, share in shares.items())
        lowest, mixture = self._lowest(shares)
        return HullResult(formation - lowest, formation, self.num_in_system(shares), mixture)

    def _lowest(self, shares: Mapping[str, float]) -> tuple[float, tuple[tuple[str, float], ...]]:
        """Returns the hull's formation energy (eV/atom) at a composition, and the decomposition that reaches it."""
        symbols = sorted(shares)
        if len(symbols) == 1:
            return 0.0, ((symbols[0], 1.0),)
        corners: list[Material] = [({symbol: 1.0}, 0.0) for symbol in symbols] + self._within(symbols)
        energies = np.array([energy for _, energy in corners])
        amounts = np.array([[mix.get(symbol, 0.0) for mix, _ in corners] for symbol in symbols])
        solved = linprog(energies, A_eq=amounts, b_eq=[shares[symbol] for symbol in symbols], method="highs")
        if not solved.success:
            raise ValueError(f"no hull at {'-'.join(symbols)}: {solved.message}")
        used = [(float(x), mix) for x, (mix, _) in zip(solved.x, corners, strict=True) if x > _LEAST_SHARE]
        used.sort(key=lambda pair: -pair[0])
        return float(solved.fun), tuple((_formula(mix), share) for share, mix in used)


def _formula(shares: Mapping[str, float]) -> str:
    """Returns a formula with whole numbers, from shares that were rounded."""
    if len(shares) == 1:
        return next(iter(shares))
    return Composition(shares).get_integer_formula_and_factor(max_denominator=1000)[0]


@quiet()
def read_hull(path: Path | str, *, elements: Path | str | None = None) -> Hull:
    """Reads a convex hull of known materials.

    Args:
        path: a folder or CSV of 'crystal-jax hull'; a CSV with `composition` (a formula, or JSON from symbols to
            amounts) and `formation_energy_per_atom` (eV/atom, MP2020-corrected); or JSON with computed entries, see
            `entries.read_entries`. Files may be compressed as .gz, .bz2 or .xz.
        elements: with a CSV, a file of entries of the elements' reference states; by default the one
            `*elemental-reference-entries.json*` in the same folder.

    Raises:
        UserError: a file is missing or has another content.
    """
    path = as_path(path, "path")
    if path.is_dir():
        path = path / FILE
    kind = next((s for s in reversed(path.suffixes) if s not in COMPRESSED), "")
    if kind in (".pkl", ".pickle"):
        raise UserError(
            f"{path}: a pickle may hold any program, so it is not read; take the same materials as JSON of computed "
            "entries (Matbench Discovery: *-computed-structure-entries.json.gz)"
        )
    if not path.exists():
        raise UserError(f"{path}: no such file of known materials; --hull is a CSV or JSON of the convex hull")
    if kind not in (".csv", ".json"):
        raise UserError(f"{path}: known materials are read from .csv and .json, also as .gz, .bz2 or .xz")
    source = f"{path.name}, SHA-256 {hashlib.sha256(stored_bytes(path)).hexdigest()[:16]}"
    if kind == ".json":
        entries = read_entries(path)
        lowest = _elements(entries)
        return Hull(_formation_energies(entries, lowest), lowest, source)
    table = parse_rows(read_bytes(path), name=str(path))
    if "energy_per_atom" in table.columns:
        return _hull_of_model(table, path, source)
    return Hull(_formation_table(table, path), _elements(read_entries(_elements_file(path, elements))), source)


def _hull_of_model(table: Table, path: Path, source: str) -> Hull:
    """Builds a hull from the table that 'crystal-jax hull' writes."""
    if missing := set(COLUMNS) - set(table.columns):
        raise UserError(f"{path}: not a table of 'crystal-jax hull': it has no column {', '.join(sorted(missing))}")
    entries, models = [], set()
    for number, row in enumerate(table.records(), start=1):
        checked = JsonObject(row, path, where=f"row {number}: ")
        amounts = parse_formula(row["composition"].strip(), checked)
        energy = _number(row, "energy_per_atom", checked) * sum(amounts.values())
        entries.append(KnownEntry(amounts, energy, is_pbe=True))
        models.add(row["energy_model"])
    if len(models) != 1:
        raise UserError(f"{path}: energies are of {len(models)} models; heights need one: {', '.join(sorted(models))}")
    elements = _elements(entries)
    return Hull(_formation_energies(entries, elements), elements, source, energy_model=models.pop())


def _elements_file(path: Path, elements: Path | str | None) -> Path:
    if elements is not None:
        return as_path(elements, "elements")
    beside = sorted(path.parent.glob("*elemental-reference-entries.json*"))
    if len(beside) != 1:
        raise UserError(
            f"{path} does not say which energies the elements have: pass --hull_elements=FILE, or put one file "
            f"*elemental-reference-entries.json beside it (there are {len(beside)})"
        )
    return beside[0]


def _formation_table(table: Table, path: Path) -> list[Material]:
    """Reads formation energies by composition; rows whose cells are all empty are skipped."""
    if missing := {"composition", "formation_energy_per_atom"} - set(table.columns):
        raise UserError(f"{path}: not a table of known materials: it has no column {', '.join(sorted(missing))}")
    rows = enumerate(table.records(), start=1)
    return [_material(row, path, number) for number, row in rows if any(row.values())]


def _material(row: Mapping[str, str], path: Path, number: int) -> Material:
    checked = JsonObject(row, path, where=f"row {number}: ")
    text = row["composition"].strip()
    if text.startswith("{"):
        amounts = check_amounts(JsonObject.of(parse_json(text, path), path, checked.where).content, checked)
    else:
        amounts = parse_formula(text, checked)
    return amounts, _number(row, "formation_energy_per_atom", checked)


def _number(row: Mapping[str, str], column: str, checked: JsonObject) -> float:
    try:
        return finite_text(row[column])
    except ValueError:
        raise checked.error(f"{checked.where}{column} is {describe(row[column])}, not a finite number") from None


def _elements(entries: Iterable[KnownEntry]) -> dict[str, float]:
    """Returns the lowest energy of each element, eV/atom."""
    lowest: dict[str, float] = {}
    for entry in entries:
        if len(entry.amounts) == 1:
            symbol = next(iter(entry.amounts))
            lowest[symbol] = min(lowest.get(symbol, np.inf), entry.energy_per_atom)
    return lowest


def _formation_energies(entries: Iterable[KnownEntry], elements: Mapping[str, float]) -> Iterable[Material]:
    for entry in entries:
        if elements.keys() >= entry.amounts.keys():
            atoms = sum(entry.amounts.values())
            reference = sum(amount * elements[symbol] for symbol, amount in entry.amounts.items())
            yield entry.amounts, (entry.energy - reference) / atoms
