"""Applies the MP2020 corrections, which make a model's energy comparable with the Materials Project's.

Potentials trained on raw PBE and PBE+U total energies need the corrections (Wang et al., Sci. Rep. 11, 15496, 2021).
They make calculations with and without U comparable, and correct the energies of anions. CHGNet was trained on
corrected energies, so the corrections must not be applied to its energies again.
"""

from __future__ import annotations

from pymatgen.core import Structure
from pymatgen.entries.compatibility import MaterialsProject2020Compatibility
from pymatgen.entries.computed_entries import ComputedEntry, ComputedStructureEntry
from pymatgen.io.vasp.sets import MPRelaxSet

from crystal_jax.suppress_warnings import quiet

SCHEME = "MaterialsProject2020Compatibility"


def energy_per_atom(structure: Structure, energy: float, *, is_corrected: bool) -> float:
    """Returns a model's energy as hulls have it, in eV/atom, with the corrections.

    Args:
        structure: the relaxed structure.
        energy: the model's energy of its cell, eV.
        is_corrected: whether the energy contains the corrections already.

    Raises:
        ValueError: the correction scheme does not cover the structure.
    """
    return (energy if is_corrected else corrected_energy(structure, energy)) / len(structure)


@quiet()
def corrected_energy(structure: Structure, energy: float) -> float:
    """Returns the energy of the cell with the corrections, in eV.

    Args:
        structure: the relaxed structure.
        energy: the energy of its cell in eV, as VASP computes it with the settings of `MPRelaxSet`.

    Raises:
        ValueError: the correction scheme does not cover the structure.
    """
    return corrected(ComputedStructureEntry(structure, energy, correction=0.0, parameters=_parameters(structure)))


@quiet()
def corrected(entry: ComputedEntry) -> float:
    """Returns the corrected energy of an entry, in eV.

    Raises:
        ValueError: the correction scheme does not cover the entry.
    """
    scheme = MaterialsProject2020Compatibility(check_potcar=False)
    processed = scheme.process_entries([entry], clean=True, on_error="ignore")
    if not processed:
        raise ValueError("the MP2020 corrections do not cover it")
    return float(processed[0].energy)


def hubbard_values(structure: Structure) -> dict[str, float]:
    """Returns the Hubbard U in eV that the Materials Project's settings give each element; only values above 0."""
    values = MPRelaxSet.CONFIG["INCAR"]["LDAUU"]
    anion = max(structure.composition.elements, key=lambda element: element.X)
    of_anion = values.get(anion.symbol, {})
    found = {element.symbol: float(of_anion.get(element.symbol, 0)) for element in structure.composition.elements}
    return {symbol: value for symbol, value in found.items() if value > 0}


def _parameters(structure: Structure) -> dict[str, object]:
    hubbards = hubbard_values(structure)
    return {"hubbards": hubbards, "is_hubbard": bool(hubbards), "run_type": "GGA+U" if hubbards else "GGA"}
