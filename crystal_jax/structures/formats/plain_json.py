"""Reads pymatgen's structures in JSON as plain data: lattice, species, coordinates.

pymatgen's own decoder imports any class that a file names. This reader executes nothing that a file names.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from crystal_jax.errors import UserError
from crystal_jax.structures.build import entry_of
from crystal_jax.structures.entry import Entry
from crystal_jax.structures.formats.cif import one_line
from crystal_jax.suppress_warnings import quiet

_NAMES = ("material_id", "entry_id", "mat_id", "name")
_LONGEST = 50_000_000  # characters of a dictionary in a table's cell


@quiet()
def read_json(text: str, *, name: str) -> list[Entry]:
    """Returns the structures of a file: a structure's dictionary, a list of them, or a mapping from names to them.

    A dictionary with a structure under "structure", such as pymatgen's computed entries, is read as this structure.
    Entries have the names in the file, or "".

    Args:
        text: content of the file.
        name: name of the file, for error messages.

    Raises:
        UserError: the file is not JSON, or has no structures.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}: not readable JSON ({error})") from error
    if isinstance(found, dict) and isinstance(found.get("structures"), list):
        found = found["structures"]
    if isinstance(found, dict) and not _structure_in(found):
        items = [(str(key), value) for key, value in found.items()]
    else:
        items = [("", value) for value in (found if isinstance(found, list) else [found])]
    if not items or not any(_structure_in(value) for _, value in items):
        raise UserError(f"{name}: the JSON holds no pymatgen structures (dictionaries with 'lattice' and 'sites')")
    return [_entry(value, key) for key, value in items]


@quiet()
def entry_of_text(text: str, *, name: str) -> Entry:
    """Returns the structure of a dictionary in a table's cell, as JSON or in Python's notation."""
    try:
        if len(text) > _LONGEST:
            raise ValueError
        try:
            found = json.loads(text)
        except ValueError:
            found = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return Entry(name, "", fault="the cell holds a dictionary that is no JSON")
    return _entry(found, name)


def _structure_in(value: Any) -> Mapping[str, Any] | None:
    """Returns a structure's dictionary if the value is one or contains one."""
    if not isinstance(value, dict):
        return None
    if isinstance(value.get("structure"), dict):
        value = value["structure"]
    return value if "lattice" in value and "sites" in value else None


def _entry(value: Any, name: str) -> Entry:
    structure = _structure_in(value)
    if structure is None:
        return Entry(name, "", fault="no pymatgen structure: it has no lattice and sites")
    name = name or next((str(value[key]) for key in _NAMES if isinstance(value.get(key), str)), "")
    try:
        matrix = np.array(structure["lattice"]["matrix"], float).reshape(3, 3)
        sites = structure["sites"]
        symbols = [_symbol(site["species"]) for site in sites]
        if sites and all("abc" in site for site in sites):
            frac = np.array([site["abc"] for site in sites], float).reshape(-1, 3)
        else:
            xyz = np.array([site["xyz"] for site in sites], float).reshape(-1, 3)
            frac = np.linalg.solve(matrix.T, xyz.T).T
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError, np.linalg.LinAlgError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else one_line(error)
        return Entry(name, "", fault=f"not a readable pymatgen structure: {reason}")
    return entry_of(matrix, symbols, frac, name=name)


def _symbol(species: Any) -> str:
    """Returns the element of an ordered site."""
    (only,) = species if len(species) == 1 else (None,)
    if only is None or abs(float(only.get("occu", 1)) - 1) > 1e-8:
        raise ValueError("disordered: a site is shared or partly empty")
    symbol = only["element"]
    if not isinstance(symbol, str):
        raise TypeError("an element is no text")
    return symbol.rstrip("+-0123456789")
