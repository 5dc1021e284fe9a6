"""Parses CIF text with pymatgen, and states why a text has no valid crystal.

pymatgen accepts nearly anything: it reports problems as warnings, reads a missing coordinate as 0, and does not reject
a cell whose atoms differ from the formula that the file states.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from pymatgen.core import DummySpecies, Element, Structure
from pymatgen.io.cif import CifBlock, CifFile, CifParser, CifWriter, str2float

from crystal_jax.structures import formula as formulas
from crystal_jax.structures.entry import stated_formula
from crystal_jax.structures.lattice import cell_fault, matrix_fault
from crystal_jax.suppress_warnings import quiet

MAX_SITES = 5_000  # rows of a CIF; pymatgen compares all pairs: 10 s for 4,000 rows
MAX_IMAGES = 20_000  # rows times symmetry operations, which pymatgen also compares in pairs
MAX_LINE = 20_000  # characters; the standard's limit is 2,048, and pymatgen's patterns are slow on longer lines

_BLOCK = re.compile(r"^[ \t]*data_(\S*)", re.MULTILINE | re.IGNORECASE)
_PAGE = re.compile(r"\s*<(!doctype|html|head|\?xml)", re.IGNORECASE)
_CELL = (
    [f"_cell_length_{axis}" for axis in "abc"],
    [f"_cell_angle_{name}" for name in ("alpha", "beta", "gamma")],
)
_SYSTEMS = ("_symmetry_cell_setting", "_space_group_crystal_system")  # pymatgen infers cell parameters from these
_OPERATIONS = (
    "_symmetry_equiv_pos_as_xyz",
    "_symmetry_equiv_pos_as_xyz_",
    "_space_group_symop_operation_xyz",
    "_space_group_symop_operation_xyz_",
)
_MANY_OPERATIONS = 48  # number of operations of a cubic group
_GROUP_NAMES = ("_symmetry_space_group_name_H-M", "_space_group_name_H-M_alt")
_GROUP_NUMBERS = ("_symmetry_Int_Tables_number", "_space_group_IT_number")


@dataclasses.dataclass(frozen=True)
class Read:
    """Crystal read from a CIF.

    Attributes:
        structure: the crystal.
        expanded: whether its space group had to be applied, because the file only names it.
        remark: difference to its stated formula, if only hydrogen is missing.
    """

    structure: Structure
    expanded: bool
    remark: str | None = None


@quiet()
def write_cif(structure: Structure) -> str:
    """Returns a crystal as CIF text in P1, with eight digits per number."""
    return str(CifWriter(structure))


def blocks(text: str) -> list[tuple[str, str]]:
    """Splits CIF text into crystals: the name of each `data_` block and its text.

    Blocks without cell and sites (of a publication, or a powder pattern) are left out. Text with at most one block is
    returned unchanged as one crystal.
    """
    found = _starts(text)
    if len(found) < 2:
        return [(found[0][0] if found else "", text)]
    ends = [begin for _, begin in found[1:]] + [len(text)]
    parts = [(name, text[begin:end]) for (name, begin), end in zip(found, ends, strict=True)]
    crystals = [(name, part) for name, part in parts if "_cell_length_" in part or "_atom_site_" in part]
    return crystals or [(parts[0][0], text)]


@quiet()
def read_cif(text: str, *, formula: str = "", strict: bool = True) -> Read:
    """Builds the crystal of a CIF, with elements as species and sites in pymatgen's order.

    Oxidation states are removed, and deuterium becomes hydrogen. A file that names a space group but lists only the
    identity as its operation, as language models write it, is expanded by the group if the result has the stated
    formula.

    Args:
        text: the CIF of one crystal.
        formula: formula that the source states in addition to the CIF; it is compared with the sites as the CIF's own
            is.
        strict: whether to reject a crystal that lacks hydrogens of its stated formula, as measured crystals do;
            otherwise it gets a remark.

    Raises:
        ValueError: the text has no ordered crystal of elements, or its atoms differ from the stated formula; the
            message is one line.
    """
    text = _one_block(_tidy(text))
    parser, data = _parsed(text)
    structure = _structure(parser)
    stated_in_cif = stated_formula(text)
    whole = _expanded(structure, text, data, stated_in_cif)
    atoms = (whole or structure).composition
    remark = None
    for stated_text in (stated_in_cif, formula):
        stated = formulas.composition(stated_text)
        if stated is None or formulas.agrees(atoms, stated):
            continue
        difference = f"{atoms.formula} in the cell, {' '.join(stated_text.split())} stated"
        if strict or not formulas.lacks_only_hydrogen(atoms, stated):
            raise ValueError(difference)
        remark = difference
    return Read(whole or structure, expanded=whole is not None, remark=remark)


def one_line(error: BaseException) -> str:
    """Returns an error's message on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def of_elements(structure: Structure) -> Structure:
    """Returns the same crystal without oxidation states and isotopes.

    Raises:
        ValueError: a site is shared or partly occupied, or has no real element.
    """
    if not structure.is_ordered:
        raise ValueError("disordered: a site is shared or partly empty")
    species = [site.specie for site in structure]
    if any(isinstance(specie, DummySpecies) for specie in species):
        raise ValueError("a site holds no real element")
    elements = [Element.from_Z(specie.Z) for specie in species]
    if all(one is other for one, other in zip(species, elements, strict=True)):
        return structure
    return Structure(structure.lattice, elements, structure.frac_coords)


def _starts(text: str) -> list[tuple[str, int]]:
    """Returns names and positions of the `data_` lines outside text fields (between semicolons)."""
    found = [(match[1], match.start()) for match in _BLOCK.finditer(text)]
    if len(found) < 2:
        return found
    fences = [match.start() for match in re.finditer("^;", text, re.MULTILINE)]
    return [(name, begin) for name, begin in found if int(np.searchsorted(fences, begin)) % 2 == 0]


def _tidy(text: str) -> str:
    """Removes blank lines, on which pymatgen's patterns are slow."""
    lines = [line for line in text.lstrip("\ufeff").splitlines() if line.strip()]
    if any(len(line) > MAX_LINE for line in lines):
        raise ValueError(f"CIF does not parse: a line has more than {MAX_LINE:,} characters")
    return "\n".join(lines) + "\n"


def _one_block(text: str) -> str:
    if _PAGE.match(text):
        raise ValueError("CIF does not parse: it is a web page")
    crystals = blocks(text)
    if len(crystals) > 1:
        names = ", ".join(name for name, _ in crystals[:3])
        raise ValueError(f"CIF does not parse: it holds {len(crystals)} crystals ({names}), not one")
    text = crystals[0][1]
    return _BLOCK.sub(lambda match: f"\ndata_{match[1]}", text, count=1) if "data_" not in text else text


def _check(data: Mapping[str, Any]) -> None:
    """Checks for values that pymatgen would misread or crash on.

    Raises:
        ValueError: there is such a value.
    """
    lengths, angles = ([_check_number(data[name], name) for name in names if name in data] for names in _CELL)
    if fault := cell_fault(lengths, angles):
        raise ValueError(fault)
    missing = [name for names in _CELL for name in names if name not in data]
    if missing and not any(data.get(name) for name in _SYSTEMS):
        raise ValueError(f"CIF does not parse: it has no {missing[0]}")
    labels = data.get("_atom_site_label") or data.get("_atom_site_type_symbol")
    if not labels:
        raise ValueError("CIF does not parse: it lists no sites")
    if "_atom_site_label" not in data:
        raise ValueError("CIF does not parse: its sites have no _atom_site_label")
    listed = next((data[name] for name in _OPERATIONS if data.get(name)), None)
    images = len(labels) * (_MANY_OPERATIONS if listed is None else len(listed) if isinstance(listed, list) else 1)
    if len(labels) > MAX_SITES or (images > MAX_IMAGES and (listed is not None or _names_group(data))):
        raise ValueError(f"CIF does not parse: {len(labels)} sites with their symmetry are too many")
    for axis in "xyz":
        values = data.get(f"_atom_site_fract_{axis}")
        if not isinstance(values, list):
            raise ValueError("CIF does not parse: its sites have no fractional coordinates")
        for label, value in zip(labels, values, strict=False):
            _check_number(value, f"the coordinate {axis} of the site {label}")
    occupancies = data.get("_atom_site_occupancy")
    for label, value in zip(labels, occupancies if isinstance(occupancies, list) else (), strict=False):
        if value != "?":  # pymatgen reads it as 1, which is right
            _check_number(value, f"the occupancy of the site {label}")


def _check_number(text: Any, what: str) -> float:
    try:
        if str(text).strip() in (".", "?"):
            raise ValueError
        return float(str2float(text))
    except (TypeError, ValueError, IndexError):
        raise ValueError(f"CIF does not parse: {what} is {text!r}, which is no number") from None


def _parsed(text: str) -> tuple[CifParser, Mapping[str, Any]]:
    """Returns pymatgen's parser for a block with a crystal, and the block's values."""
    try:
        parser = CifParser.from_str(text)
        data = next(iter(parser.as_dict().values()), None)
    except Exception as error:  # malformed CIFs raise many types of errors
        with contextlib.suppress(IndexError, ArithmeticError, KeyError, TypeError):
            for block in CifFile.from_str(text).data.values():
                _check(block.data)
        raise ValueError(f"CIF does not parse: {one_line(error)}") from error
    if data is None:
        raise ValueError("CIF does not parse: it has no 'data_' line")
    _check(data)
    return parser, data


def _structure(parser: CifParser) -> Structure:
    try:
        structure = parser.parse_structures(primitive=False, on_error="raise")[0]
    except Exception as error:
        raise ValueError(f"CIF does not parse: {_reason(error)}") from error
    structure = of_elements(structure)
    if fault := matrix_fault(structure.lattice.matrix):
        raise ValueError(fault)
    if not np.isfinite(structure.frac_coords).all():
        raise ValueError("a coordinate is not finite")
    return structure


def _reason(error: BaseException) -> str:
    """Returns why pymatgen found no structure."""
    cause = error.__cause__ or error
    if isinstance(cause, KeyError):
        return f"it has no {cause.args[0]}"
    text = one_line(cause)
    if over := re.match(r"Occupancy (\S+) exceeded tolerance", text):
        return f"occupancies sum to {over[1]} at a site, more than 1"
    return "it has no cell, or no occupied site" if "with no structures" in text else text


def _names_group_only(data: Mapping[str, Any]) -> bool:
    """Whether the file names a space group above P1, and lists the identity as its only operation."""
    operations = next((data[name] for name in _OPERATIONS if data.get(name)), None)
    if operations is None:  # pymatgen then uses the group's operations
        return False
    listed = [operations] if isinstance(operations, str) else operations
    if [re.sub(r"[\s+]", "", str(each)).lower() for each in listed] != ["x,y,z"]:
        return False
    return _names_group(data)


def _names_group(data: Mapping[str, Any]) -> bool:
    named = {re.sub(r"[\s_'\"]", "", str(data[name])) for name in (*_GROUP_NAMES, *_GROUP_NUMBERS) if data.get(name)}
    return bool(named - {"P1", "1", "?", "."})


def _expanded(structure: Structure, text: str, data: Mapping[str, Any], stated_text: str) -> Structure | None:
    """Returns the complete cell of a file that only names its space group; None if the sites already are the complete
    cell.

    Raises:
        ValueError: there are too few sites for the stated formula, and expansion by the group does not give it.
    """
    stated = formulas.composition(stated_text)
    if stated is None or not _names_group_only(data):
        return None
    units = str(data.get("_cell_formula_units_Z", "1"))
    # pymatgen, and models trained on its files, state the formula of the whole cell; the standard, that of one unit.
    in_cell = stated.num_atoms * (int(units) if units.isdecimal() else 1)
    right = formulas.agrees(structure.composition, stated)
    if right and (len(structure) == in_cell or len(structure) > stated.num_atoms):
        return None
    whole = _by_group(text)
    more = whole is not None and len(whole) > len(structure) and len(whole) in (stated.num_atoms, in_cell)
    if whole is not None and more and formulas.agrees(whole.composition, stated):
        return Structure(whole.lattice, whole.species, whole.frac_coords)  # without site labels, which are not unique
    if right and len(structure) < stated.num_atoms:
        raise ValueError(f"{structure.formula} in the cell, {' '.join(stated_text.split())} stated")
    return None


def _by_group(text: str) -> Structure | None:
    """Returns the crystal that pymatgen builds from the sites and the space group; None if it fails."""
    block = next(iter(CifFile.from_str(text).data.values()))
    data = {name: value for name, value in block.data.items() if name not in _OPERATIONS}
    loops = [[name for name in loop if name in data] for loop in block.loops]
    bare = CifBlock(data, [loop for loop in loops if loop], block.header)
    try:
        return _structure(CifParser.from_str(str(CifFile({block.header: bare}))))
    except ValueError:
        return None
