"""The columns of an evaluation's table, one row per sample, with their types."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

# Columns of `structures.csv`, in their order.
COLUMNS = {
    "name": "str",
    "formula": "str",
    "reduced_formula": "str",
    "num_atoms": "Int64",
    "num_elements": "Int64",
    "density": "float64",  # g/cm^3
    "volume": "float64",  # Å^3, of the cell
    "spacegroup": "Int64",  # number; only for valid samples
    "structurally_valid": "bool",
    "compositionally_valid": "bool",
    "valid": "bool",
    "plausible": "bool",  # valid, and within the chemical limits of `validity.implausible_reason`
    "implausible_reason": "str",  # of valid samples
    "min_distance": "float64",  # Å, between any two atoms, periodic images included
    "oxidation_states": "str",  # the most common balanced choice, such as "Li+1 Fe+2 P+5 O-2"
    "unique": "boolean",  # for valid samples: no earlier row is the same crystal
    "unique_loose": "boolean",  # the same at CDVAE's tolerances
    "novel": "boolean",  # for valid samples, given a training set: the crystal is not in it
    "novel_loose": "boolean",  # the same at CDVAE's tolerances
    "matched_train_id": "str",  # name of the same crystal in the training set
    "covered": "boolean",  # for samples with a structure: the reference has crystals near it by fingerprint
    "structure_distance": "float64",  # fingerprint distance to the nearest reference crystal
    "composition_distance": "float64",
    "novel_by_fingerprint": "boolean",  # for valid samples, given the training set's fingerprints: far from all of them
    "nearest_known": "str",  # nearest crystal by fingerprint, of the training set or else of the reference
    "known_formula": "boolean",  # for valid samples, given the list: the Materials Project has this formula
    # For samples with this condition:
    "formula_match": "boolean",
    "spacegroup_match": "boolean",
    "e_above_hull_match": "boolean",
    "chemical_system_match": "boolean",
    # From a file of scores:
    "perplexity": "float64",
    "ipt": "float64",  # increase in perplexity under translation
    # For valid samples, given an energy model:
    "relaxation_status": "str",  # "converged", "steps" (limit reached; the energy counts), or the type of failure
    "relaxation_steps": "Int64",
    "energy_per_atom": "float64",  # eV, relaxed, with the MP2020 corrections
    "formation_energy_per_atom": "float64",  # eV, relaxed
    "e_above_hull": "float64",  # eV/atom, relaxed
    "e_above_model_hull": "float64",  # the same above the hull of the potential's own energies, beside a DFT hull
    "known_in_system": "Int64",  # number of the hull's materials with exactly these elements
    "stable_in_system": "Int64",  # stable compounds of these elements in the Materials Project
    "stable_missing": "Int64",  # how many of these compounds the hull lacks
    "lower_bound": "boolean",  # the hull is incomplete: the true energy above the hull is at least this
    "decomposes_to": "str",  # the hull's materials at this composition, with shares
    "relaxed_spacegroup": "Int64",
    "known_crystal": "boolean",  # the Materials Project has this formula in this space group
    "relaxed_density": "float64",  # g/cm^3
    "relaxed_volume": "float64",  # Å^3, of the cell
    "relaxed_plausible": "boolean",  # `plausible` for the relaxed crystal
    "relaxation_rmsd": "float64",  # Å, root mean square move of the atoms, without the change of the cell
    # From DFT, written by 'crystal-jax dft collect':
    "dft_status": "str",  # how the DFT run ended
    "e_above_hull_dft": "float64",  # eV/atom
    "failure_reason": "str",  # reasons, joined by "; "
    "remark": "str",  # hydrogens that are stated in the formula and missing in the sites
}

# Columns that stages pass to each other; they are not written.
INTERNAL = {
    "passes_checks": "bool",  # structurally and compositionally valid
    "checks_failure": "str",
    "primitive_cell": "object",  # Niggli-reduced, of `novelty.matcher.reduce_cell`; of samples that pass the checks
    "cell_failure": "str",
    "structure_fingerprint": "object",  # array of 61 numbers
    "composition_fingerprint": "object",  # array of 132 numbers
    "fingerprint_failure": "str",
    "validity_failure": "str",  # in the mode "paper": it passes the checks, but has no fingerprint
    "new_by_structure": "boolean",  # further than `cutoffs.NOVELTY` from every structure of the training set
    "new_by_composition": "boolean",
    "relaxed_cif": "str",
    "relaxed_energy": "float64",  # eV, of the cell, without corrections by this package
    "relaxation_failure": "str",
    "hull_failure": "str",
}

TYPES: Mapping[str, str] = {**COLUMNS, **INTERNAL}


def empty_column(name: str, length: int) -> pd.Series:
    """Returns a column without values: False, an empty text, or missing."""
    kind = TYPES[name]
    return pd.Series([False if kind == "bool" else None] * length, dtype=kind, name=name)
