"""Reads computed entries of known materials from plain JSON: composition, corrected energy and functional.

The files hold pymatgen's `ComputedEntry` and `ComputedStructureEntry` objects, as the Materials Project, Matbench
Discovery and Alexandria publish them. They name Python classes under "@module" and "@class". This module imports and
calls none of these classes, because a file could name any installed module.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pymatgen.core import Composition, Element

from crystal_jax.errors import UserError
from crystal_jax.json_files import JsonObject, describe, finite, read_json

# Names of PBE and PBE+U as `_functional` returns them; only their energies are comparable with the potentials'.
_PBE = frozenset({"GGA", "PBE", "GGA+U", "PBE+U"})
_MIXED = "R2SCAN"  # in the name of an adjustment, it means that the energy refers to another functional's zero
_SYMBOLS = frozenset(element.symbol for element in Element)
_ISOTOPES = {"D": "H", "T": "H"}
_SPECIES = re.compile(r"([A-Z][a-z]?)(?:\d*\.?\d*[+-])?(?:,.*)?")  # "Na", "Na+", "Fe3+", "Fe3+,spin=5"


@dataclasses.dataclass(frozen=True)
class KnownEntry:
    """Calculation of a known material.

    Attributes:
        amounts: atoms of each element in the cell, by symbol.
        energy: corrected energy of the cell, eV.
        is_pbe: whether the functional is PBE or PBE+U, or is not stated.
    """

    amounts: Mapping[str, float]
    energy: float
    is_pbe: bool

    @property
    def energy_per_atom(self) -> float:
        """Corrected energy per atom, in eV."""
        return self.energy / sum(self.amounts.values())


def read_entries(path: Path) -> list[KnownEntry]:
    """Reads the PBE and PBE+U entries of a file.

    Args:
        path: JSON, also compressed as .gz, .bz2 or .xz. The content is a list of entries; an object of entries by id;
            an object with the list under "entries" (Alexandria); a table with the column "entry" (Matbench Discovery);
            or the Materials Project's thermo documents, whose "entries" hold one entry for each functional.

    Raises:
        UserError: the file is missing or damaged, an entry lacks a number, or no entry is PBE.
    """
    entries = [_entry(name, row, path) for name, row in _rows(read_json(path), path)]
    chosen = [entry for entry in entries if entry.is_pbe]
    if not entries:
        raise UserError(f"{path} holds no computed entry")
    if not chosen:
        raise UserError(f"{path}: no entry is of GGA or GGA+U (PBE); energies of other functionals have another zero")
    return chosen


def _rows(found: Any, path: Path) -> Iterator[tuple[str, JsonObject]]:
    """Yields the name and content of each entry, for all of the file layouts."""
    if isinstance(found, dict):
        found = found.get("entries", found.get("entry", found))
    if not isinstance(found, dict | list):
        raise UserError(f"{path}: holds {describe(found)}, not a list of computed entries")
    named = found.items() if isinstance(found, dict) else enumerate(found)
    for key, value in named:
        row = JsonObject.of(value, path, where=f"entry {key}")
        documents = row.get("entries")
        if isinstance(documents, dict):  # a thermo document holds entries by functional
            for functional, entry in documents.items():
                yield (
                    f"{key}.{functional}",
                    _stated_as(JsonObject.of(entry, path, f"entry {key}.{functional}"), functional),
                )
        else:
            yield str(key), row


def _stated_as(entry: JsonObject, functional: str) -> JsonObject:
    """Adds the functional that a thermo document states, if the entry itself states none."""
    parameters = entry.get("parameters")
    stated = parameters if isinstance(parameters, dict) else {}
    if stated.get("run_type") is not None:
        return entry
    return dataclasses.replace(entry, content={**entry.content, "parameters": {**stated, "run_type": functional}})


def _entry(name: str, row: JsonObject, path: Path) -> KnownEntry:
    row = dataclasses.replace(row, where=f"entry {name}: ")
    adjustments = [
        JsonObject.of(each, path, f"entry {name}: adjustment.") for each in row.items("energy_adjustments", [])
    ]
    correction = math.fsum(map(_adjustment, adjustments)) if adjustments else row.number("correction", 0.0)
    mixed = any(_MIXED in str(each.get("name")).upper() for each in adjustments)
    functional = _functional(row.part("parameters", {}).get("run_type"))
    return KnownEntry(_amounts(row), row.number("energy") + correction, functional in (None, *_PBE) and not mixed)


def _adjustment(row: JsonObject) -> float:
    """Returns the value of an energy adjustment in eV, from the fields of pymatgen's adjustment classes."""
    if "value" in row:
        return row.number("value")
    if "adj_per_atom" in row:
        return row.number("adj_per_atom") * row.number("n_atoms")
    if "adj_per_deg" in row:
        return row.number("adj_per_deg") * row.number("temp") * row.number("n_atoms")
    raise row.error(f"{row.where.rstrip('.')} {describe(row.get('name'))} states no value")


def _functional(run_type: Any) -> str | None:
    """Returns a run type in capitals, with "+U" for a Hubbard U; None if the file states none.

    Files hold strings ("GGA", "PBEsol"), names of enumeration members ("RunType.GGA_U"), and members themselves as
    objects with a "value".
    """
    if isinstance(run_type, dict):
        run_type = run_type.get("value")
    if run_type is None or run_type == "":
        return None
    name = str(run_type).rpartition("RunType.")[2].strip().upper()
    return name.removesuffix("_U") + "+U" if name.endswith("_U") else name


def _amounts(row: JsonObject) -> dict[str, float]:
    """Returns the number of atoms of each element in the cell."""
    stated = row.get("composition")
    if isinstance(stated, str):
        return parse_formula(stated, row)
    if stated is None and isinstance(row.get("structure"), dict):
        return _of_sites(row.part("structure"))
    return check_amounts(row.part("composition").content, row)


def parse_formula(formula: str, row: JsonObject) -> dict[str, float]:
    """Returns the amount of each element in a formula. `row` is used for error messages.

    Raises:
        UserError: the string is not a formula.
    """
    amounts = _parsed(formula)
    if not amounts:
        raise row.error(f"{row.where}composition {describe(formula)} is no formula")
    return dict(amounts)


@functools.lru_cache(maxsize=4096)
def _parsed(formula: str) -> Mapping[str, float]:
    try:
        return Composition(formula, strict=True).get_el_amt_dict()
    except (ValueError, TypeError, ArithmeticError):
        return {}


def check_amounts(stated: Mapping[str, Any], row: JsonObject) -> dict[str, float]:
    """Converts amounts by species ("Na", "Na+") to amounts by element. `row` is used for error messages.

    Raises:
        UserError: a species is not an element, or an amount is not a positive number.
    """
    amounts: dict[str, float] = {}
    for species, value in stated.items():
        match = _SPECIES.fullmatch(species)
        symbol = _ISOTOPES.get(match[1], match[1]) if match else ""
        if symbol not in _SYMBOLS:
            raise row.error(f"{row.where}composition has {describe(species)}, which is no element")
        amount = finite(value)
        if amount is None or amount < 0:
            raise row.error(f"{row.where}composition has {describe(value)} of {symbol}, not an amount")
        if amount:
            amounts[symbol] = amounts.get(symbol, 0.0) + amount
    if not amounts:
        raise row.error(f"{row.where}composition is empty")
    return amounts


def _of_sites(structure: JsonObject) -> dict[str, float]:
    """Sums the occupancies of a structure's sites by element."""
    sites = [JsonObject.of(site, structure.path, f"{structure.where}site.") for site in structure.items("sites")]
    species = itertools.chain.from_iterable(
        (JsonObject.of(each, site.path, site.where) for each in site.items("species")) for site in sites
    )
    amounts: dict[str, float] = {}
    for each in species:
        symbol = each.text("element")
        amounts[symbol] = amounts.get(symbol, 0.0) + each.number("occu", 1.0)
    return check_amounts(amounts, structure)
