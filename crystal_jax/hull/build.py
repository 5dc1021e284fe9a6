"""Builds a hull: relaxes the known crystals, corrects their energies, keeps the lowest of each composition."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pymatgen.core import Composition, Structure

from crystal_jax.energy.convex_hull.corrections import SCHEME, energy_per_atom
from crystal_jax.energy.convex_hull.embedded import embedded_path
from crystal_jax.energy.convex_hull.hull import COLUMNS, FILE
from crystal_jax.energy.model import includes_corrections
from crystal_jax.energy.relaxation.journal import key_of
from crystal_jax.energy.relaxation.runner import relax_all
from crystal_jax.errors import UserError
from crystal_jax.hull.config import HullConfig
from crystal_jax.hull.elements import SPARSE_ELEMENTS, element_crystals
from crystal_jax.hull.materials_project import fetch_crystals
from crystal_jax.hull.substitution import substituted_crystals
from crystal_jax.json_files import read_json
from crystal_jax.provenance import versions
from crystal_jax.storage.files import write_bytes, write_text
from crystal_jax.storage.worker_pool import map_in_order
from crystal_jax.structures import Entry, parse, read_entries
from crystal_jax.suppress_warnings import quiet
from crystal_jax.tables import read_rows, to_text

CARD = "hull.json"
_RELAXATIONS = "relaxations"  # folder of their logs


@dataclasses.dataclass(frozen=True)
class _Material:
    """Material of the hull: reduced formula, corrected energy in eV/atom, id."""

    formula: str
    energy_per_atom: float
    id: str


def build_hull(config: HullConfig) -> Path:
    """Builds a hull and returns the path of its table; see `hull.run.hull`."""
    output = Path(config.output)
    entries = _known_crystals(config)
    cifs = {entry.name: entry.cif for entry in entries}
    rows = relax_all(
        list(cifs.values()),
        config.relax_job,
        output / _RELAXATIONS,
        workers=config.workers,
        ray_address=config.ray_address,
        progress=config.progress,
    )
    statuses = Counter(rows[key_of(cif)]["status"] for cif in cifs.values())
    converged = [(name, rows[key_of(cif)]) for name, cif in cifs.items() if rows[key_of(cif)]["status"] == "converged"]
    is_corrected = includes_corrections(config.energy_model)
    energies = map_in_order(
        functools.partial(_formula_and_energy, is_corrected=is_corrected),
        [(row["relaxed_cif"], row["energy"]) for _, row in converged],
        workers=config.workers,
        lost=lambda _: None,
    )
    own = [
        _Material(found[0], found[1], name)
        for (name, _), found in zip(converged, energies, strict=True)
        if found is not None
    ]
    embedded = _embedded(config)
    unseen = _unseen([*own, *embedded], config)
    lowest = _lowest([*own, *embedded, *unseen])
    write_bytes(output / FILE, _table(lowest, config.energy_model))
    card = {
        "energy_model": config.energy_model,
        "settings": dataclasses.asdict(config.relax),
        "corrections": "the model's own" if is_corrected else SCHEME,
        "sources": [*(path.name for path in map(Path, config.structures))]
        + (["Materials Project (mp-api)"] if config.materials_project else []),
        "chemical_system": config.chemical_system,
        "crystals": len(cifs),
        "relaxations": dict(statuses.most_common()),
        "not_covered_by_corrections": len(converged) - len(own),
        "prototypes_for_each_compound": config.num_prototypes,
        "embedded_materials": len(embedded),
        "energies_of_dft": [material.id for material in unseen],
        "materials": len(lowest),
        "versions": versions(("crystal_jax", "jax", "pymatgen")),
    }
    write_text(output / CARD, json.dumps(card, indent=2) + "\n")
    return output / FILE


def summary(path: Path) -> str:
    """Returns a line on the numbers of a hull that was built."""
    card = read_json(path.parent / CARD)
    relaxed = ", ".join(f"{number} {status}" for status, number in card["relaxations"].items())
    return (
        f"{card['crystals']} known crystals ({relaxed}), {card['embedded_materials']} materials of the package: "
        f"{card['materials']} compositions"
    )


def _known_crystals(config: HullConfig) -> list[Entry]:
    """Returns the readable crystals of the chemical system, each CIF once.

    Raises:
        UserError: there are none.
    """
    found = [entry for path in config.structures for entry in read_entries(Path(path))]
    if config.materials_project:
        assert config.elements is not None  # checked by `HullConfig`
        found += fetch_crystals(config.elements, max_e_above_hull=config.max_e_above_hull)
    if config.elemental_references:
        found += element_crystals()
    structures = list(map_in_order(_structure, found, workers=config.workers, lost=lambda _: None))
    elements = config.elements
    kept: dict[str, Entry] = {}
    for entry, structure in zip(found, structures, strict=True):
        if structure is not None and (elements is None or elements >= structure.composition.get_el_amt_dict().keys()):
            kept.setdefault(entry.cif, entry)
    if config.num_prototypes:
        named = [(e.name, s) for e, s in zip(found, structures, strict=True) if s is not None]
        kept.update(
            (entry.cif, entry)
            for entry in substituted_crystals(
                named, elements=elements, at_most=config.num_prototypes, workers=config.workers
            )
        )
    if not kept:
        within = f" of {config.chemical_system}" if elements else ""
        raise UserError(f"none of the {len(found)} known crystals{within} can be read")
    names = Counter(entry.name for entry in kept.values())
    return [
        dataclasses.replace(entry, name=f"{entry.name}-{i}") if names[entry.name] > 1 else entry
        for i, entry in enumerate(kept.values())
    ]


@quiet()
def _structure(entry: Entry) -> Structure | None:
    return parse(entry).structure


@quiet()
def _formula_and_energy(relaxed: tuple[str, float], *, is_corrected: bool) -> tuple[str, float] | None:
    """Returns the reduced formula and the corrected energy per atom of a relaxed CIF with the energy of its cell.

    Returns None if the corrections do not cover the crystal.
    """
    structure = parse(Entry("", relaxed[0])).structure
    if structure is None:
        return None
    try:
        return structure.composition.reduced_formula, energy_per_atom(structure, relaxed[1], is_corrected=is_corrected)
    except ValueError:
        return None


def _embedded(config: HullConfig) -> list[_Material]:
    """Returns the package's materials of the chemical system."""
    path = embedded_path(config.energy_model) if config.embedded else None
    if path is None:
        return []
    elements = config.elements
    return [
        _Material(row["composition"], float(row["energy_per_atom"]), row["id"])
        for row in read_rows(path).records()
        if elements is None or elements >= set(Composition(row["composition"]).get_el_amt_dict())
    ]


def _unseen(materials: Sequence[_Material], config: HullConfig) -> list[_Material]:
    """Returns elements that the potential sees no crystal of, with their energies by DFT."""
    found = {material.formula for material in materials}
    return [
        _Material(symbol, energy, source)
        for symbol, (energy, source) in SPARSE_ELEMENTS.items()
        if symbol not in found and (config.elements is None or symbol in config.elements)
    ]


def _lowest(materials: Sequence[_Material]) -> list[_Material]:
    """Returns the material of lowest energy at each composition, sorted by formula."""
    lowest: dict[str, _Material] = {}
    for material in materials:
        if material.energy_per_atom < lowest.get(material.formula, _Material("", np.inf, "")).energy_per_atom:
            lowest[material.formula] = material
    return [lowest[formula] for formula in sorted(lowest)]


def _table(materials: Sequence[_Material], energy_model: str) -> bytes:
    rows: list[Sequence[Any]] = [(m.formula, f"{m.energy_per_atom:.4f}", m.id, energy_model) for m in materials]
    return gzip.compress(to_text(COLUMNS, rows).encode(), mtime=0)
